"""Vision Mamba: patches, a class token among them, a stack of bidirectional blocks, a linear head.

    tokens = patches(image), the class token inserted, + positions      (b, l, d)  (Vim paper, Eq. 4: there it is first)
    r = r + h,  h = mixer(norm(r))      for each block                                  (Vim paper, section 3.2)
    logits = head(norm(r + h) at the class token)                                       (Vim paper, section 3.2)

State-dict keys and shapes are those of the published checkpoints. Method names are timm's, so that its trainers,
feature extractors and tools work. Fixed to what was released: depthwise width k = 4, e = 2 d, r = d / 16 rounded up, a
residual stream in float32, learned positions, no rotary embedding and no layer scale.
"""

__all__ = ["VisionMamba"]

import inspect

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .backends import check_backend
from .errors import VimlearnError, nearest
from .mixer import BidirectionalMixer
from .norm import LayerNorm, RMSNorm
from .patch import PatchEmbed, height_and_width
from .position import class_token_index, resize_position_embedding

NORMS = ("rms", "layer")
POOLS = ("token", "avg")


class DropPath(nn.Module):
    """Drop the whole branch of a sample with probability `rate` in training, and scale what stays by 1 / (1 - rate)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, h: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return h
        keep = h.new_empty(h.shape[0], 1, 1).bernoulli_(1 - self.rate)
        return h * keep / (1 - self.rate)


class AddOnly(nn.Module):
    """Stands in for a norm that was pruned: adds the branch to the residual stream and leaves the sum as it is."""

    def forward(self, h: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        residual = residual + h
        return residual.to(h.dtype), residual


class VimBlock(nn.Module):
    """One block: add the branch of the block before to the residual stream, normalise, mix."""

    def __init__(self, norm: nn.Module, mixer: BidirectionalMixer, drop_rate: float):
        super().__init__()
        self.mixer, self.norm = mixer, norm
        # The branch is dropped where it is added: in the next block, or before the final norm.
        self.drop_path = DropPath(drop_rate)

    def forward(self, h: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (the branch of this block, residual stream in front of it), both (b, l, d)."""
        h, residual = self.norm(h, residual)
        return self.drop_path(self.mixer(h)), residual


class VisionMamba(nn.Module):
    """The Vim classifier. (b, in_chans, H, W) -> (b, num_classes).

    Arguments
        img_size: an int, or (H, W). Sides need not be multiples of the patch.
        patch_size, stride: p and the step between patches; stride None means p. A smaller one makes patches overlap.
        in_chans, num_classes: colours, classes; 0 classes leaves the head out.
        embed_dim, depth, d_state: width d, number of blocks, states n.
        class_token: "middle" (as released), "first" or None.
        global_pool: "token" reads the class token, "avg" the mean over the patches (the only way without class token).
        norm, norm_eps: "rms" or "layer", and its epsilon.
        bidirectional: False leaves the backward direction out.
        halve_directions: whether the sum of both directions is halved. True for all released classifiers.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 in the first.
        backend: as in `vimlearn.selective_scan`.

    Raises VimlearnError on settings that contradict each other and on images that do not fit. Vim paper, section 3.
    """

    def __init__(self, img_size: int | tuple[int, int] = 224, patch_size: int = 16, stride: int | None = None,
                 in_chans: int = 3, num_classes: int = 1000, embed_dim: int = 192, depth: int = 24, d_state: int = 16,
                 class_token: str | None = "middle", global_pool: str = "token", norm: str = "rms",
                 norm_eps: float = 1e-5, bidirectional: bool = True, halve_directions: bool = True,
                 drop_path_rate: float = 0.0, backend: str = "auto"):
        super().__init__()
        settings = dict(locals())
        # What rebuilds this network; stored beside the weights.
        self.config = {name: settings[name] for name in inspect.signature(VisionMamba).parameters}
        self.config["img_size"] = img_size = height_and_width(img_size)
        _check_settings(self.config)
        self.num_classes, self.global_pool, self.class_token_mode = num_classes, global_pool, class_token
        self.embed_dim = self.num_features = self.head_hidden_size = embed_dim
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbed(img_size, patch_size, stride or patch_size, in_chans, embed_dim)
        if class_token is not None:
            self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, self.num_tokens, embed_dim))
        drop_rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.layers = nn.ModuleList(
            VimBlock(self._norm(), BidirectionalMixer(embed_dim, d_state, bidirectional=bidirectional, depth=depth,
                                                      halve_directions=halve_directions, backend=backend), rate)
            for rate in drop_rates)
        self.norm_f = self._norm()
        self.head = _head(embed_dim, num_classes)
        self.reset_parameters()

    def _norm(self) -> nn.Module:
        dim, eps = self.embed_dim, self.config["norm_eps"]
        return RMSNorm(dim, eps, self.config["backend"]) if self.config["norm"] == "rms" else LayerNorm(dim, eps)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw fresh parameters for everything outside the mixers, which have drawn their own (published code)."""
        patch = self.patch_embed.proj
        # LeCun normal; 0.8796 is the spread of a normal cut at 2 sigma, although the published draw is not cut there.
        nn.init.trunc_normal_(patch.weight, std=patch.weight[0].numel() ** -0.5 / 0.87962566103423978)
        patch.bias.zero_()
        for parameter in [self.pos_embed, *([] if self.class_token_mode is None else [self.cls_token])]:
            nn.init.trunc_normal_(parameter, std=0.02)

    @property
    def num_tokens(self) -> int:
        """l: patches, and the class token if there is one."""
        return self.patch_embed.num_patches + (self.class_token_mode is not None)

    @property
    def class_token_index(self) -> int | None:
        """Where the class token stands in the sequence, or None."""
        return class_token_index(self.class_token_mode, self.patch_embed.num_patches)

    @property
    def feature_info(self) -> list[dict]:
        """One entry a block, as timm's feature extractors expect it."""
        return [{"module": f"layers.{i}", "num_chs": self.embed_dim, "reduction": self.patch_embed.stride}
                for i in range(len(self.layers))]

    def embed(self, images: Tensor) -> Tensor:
        """Return the tokens that enter the first block, (b, l, d): patches, class token in its place, positions."""
        x = self.patch_embed(images)
        at = self.class_token_index
        if at is not None:
            x = torch.cat([x[:, :at], self.cls_token.to(x.dtype).expand(x.shape[0], -1, -1), x[:, at:]], dim=1)
        return x + self.pos_embed

    def forward_features(self, images: Tensor) -> Tensor:
        """Return all tokens after the final norm, (b, l, d)."""
        h, residual = self.embed(images), None
        for layer in self.layers:
            h, residual = self._run(layer, h, residual)
        return self.norm_f(h, residual)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Read (b, l, d) out into logits (b, num_classes), or with `pre_logits` into features (b, d)."""
        x = x[:, self.class_token_index] if self.global_pool == "token" else self.patch_tokens(x).mean(1)
        return x if pre_logits else self.head(x)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (b, num_classes), for images (b, in_chans, H, W)."""
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(self, images: Tensor, indices: int | list[int] | None = None,
                              return_prefix_tokens: bool = False, norm: bool = False, stop_early: bool = False,
                              output_fmt: str = "NCHW", intermediates_only: bool = False):
        """Return the final tokens and the residual stream after chosen blocks, on the grid of patches.

        Arguments as in timm: indices (an int n: the last n blocks), norm (apply the final norm to each), output_fmt
        "NCHW" (b, d, rows, columns) or "NLC" (b, M, d), return_prefix_tokens (pair each with its class token (b, 1, d),
        where there is one).
        Returns (tokens (b, l, d), list), or the list alone with intermediates_only.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise VimlearnError(f"unknown output_fmt {output_fmt!r}; expected 'NCHW' or 'NLC'")
        take = self._block_indices(indices)
        h, residual, maps = self.embed(images), None, []
        for i, layer in enumerate(self.layers[:max(take) + 1] if stop_early else self.layers):
            h, residual = self._run(layer, h, residual)
            if i in take:
                maps.append(self._intermediate(h, residual, norm, output_fmt, return_prefix_tokens))
        return maps if intermediates_only else (self.norm_f(h, residual)[0], maps)

    def _intermediate(self, h, residual, norm, output_fmt, return_prefix_tokens):
        x = self.norm_f(h, residual)[0] if norm else (residual + h).to(h.dtype)
        patches = self.patch_tokens(x)
        if output_fmt == "NCHW":
            patches = patches.transpose(1, 2).unflatten(2, self.patch_embed.grid_size)
        at = self.class_token_index
        return (patches, x[:, at:at + 1]) if return_prefix_tokens and at is not None else patches

    def patch_tokens(self, x: Tensor) -> Tensor:
        """Return (b, M, d): the tokens (b, l, d) without the class token."""
        at = self.class_token_index
        return x if at is None else torch.cat([x[:, :at], x[:, at + 1:]], dim=1)

    def prune_intermediate_layers(self, indices: int | list[int] | None = 1, prune_norm: bool = False,
                                  prune_head: bool = True) -> list[int]:
        """Drop the blocks behind the last of `indices`, as timm's feature extractors ask for. Returns the indices."""
        take = self._block_indices(indices)
        self.layers = self.layers[:max(take) + 1]
        self.config["depth"] = len(self.layers)
        if prune_norm:
            self.norm_f = AddOnly()
        if prune_head:
            self.reset_classifier(0)
        return take

    def _block_indices(self, indices: int | list[int] | None) -> list[int]:
        depth = len(self.layers)
        if indices is None:
            return list(range(depth))
        chosen = range(depth - indices, depth) if isinstance(indices, int) else [i + depth * (i < 0) for i in indices]
        if not chosen or not all(0 <= i < depth for i in chosen):
            raise VimlearnError(f"block indices {indices} do not fit; expected an int from 1 to {depth}, "
                                f"or a list of ints from {-depth} to {depth - 1}")
        return sorted(set(chosen))

    def _run(self, layer: nn.Module, h: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(layer, h, residual, use_reentrant=False)
        return layer(h, residual)

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh head for `num_classes` in place (0: none), and change the pooling if one is given."""
        settings = {**self.config, "num_classes": num_classes, "global_pool": global_pool or self.global_pool}
        _check_settings(settings)
        self.config, self.num_classes, self.global_pool = settings, num_classes, settings["global_pool"]
        self.head = _head(self.embed_dim, num_classes).to(self.pos_embed)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Expect images of another size from now on, and resize the position embedding to the new grid."""
        old_grid, old_index = self.patch_embed.grid_size, self.class_token_index
        self.patch_embed.set_input_size(height_and_width(img_size))
        self.config["img_size"] = self.patch_embed.img_size
        with torch.no_grad():
            rows = resize_position_embedding(self.pos_embed, old_grid, self.patch_embed.grid_size,
                                             old_class_index=old_index, new_class_index=self.class_token_index)
        self.pos_embed = nn.Parameter(rows, requires_grad=self.pos_embed.requires_grad)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of storing what is inside it."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that the published recipe does not decay, besides all vectors."""
        return {"pos_embed", "cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict:
        """Patterns by which timm groups parameters into stem, blocks and the rest, for layer-wise learning rates."""
        return {"stem": r"^cls_token|pos_embed|patch_embed",
                "blocks": r"^layers\.(\d+)" if coarse else [(r"^layers\.(\d+)", None), (r"^norm_f", (99999,))]}


def _head(dim: int, num_classes: int) -> nn.Module:
    if num_classes == 0:
        return nn.Identity()
    head = nn.Linear(dim, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


def _check_settings(settings: dict) -> None:
    """Raise VimlearnError unless the constructor's arguments make sense, alone and together."""
    for name in ("patch_size", "in_chans", "embed_dim", "depth", "d_state"):
        if not isinstance(settings[name], int) or settings[name] < 1:
            raise VimlearnError(f"{name} is {settings[name]!r}; expected an int of at least 1")
    if not isinstance(settings["num_classes"], int) or settings["num_classes"] < 0:
        raise VimlearnError(f"num_classes is {settings['num_classes']!r}; expected an int of at least 0")
    if settings["stride"] is not None and (not isinstance(settings["stride"], int) or settings["stride"] < 1):
        raise VimlearnError(f"stride is {settings['stride']!r}; expected an int of at least 1, or None for "
                            "the patch size")
    for name, known in (("norm", NORMS), ("global_pool", POOLS)):
        if settings[name] not in known:
            raise VimlearnError(f"unknown {name} {settings[name]!r}{nearest(str(settings[name]), known)}; "
                                f"expected one of {', '.join(known)}")
    class_token_index(settings["class_token"], 0)
    if settings["class_token"] is None and settings["global_pool"] == "token":
        raise VimlearnError("without a class token there is none to read; expected global_pool='avg'")
    for name in ("bidirectional", "halve_directions"):
        if not isinstance(settings[name], bool):
            raise VimlearnError(f"{name} is {settings[name]!r}; expected True or False")
    for name in ("norm_eps", "drop_path_rate"):
        if type(settings[name]) not in (int, float):
            raise VimlearnError(f"{name} is {settings[name]!r}; expected a number")
    if not settings["norm_eps"] > 0:
        raise VimlearnError(f"norm_eps is {settings['norm_eps']}; expected more than 0")
    if not 0 <= settings["drop_path_rate"] < 1:
        raise VimlearnError(f"drop_path_rate is {settings['drop_path_rate']}; expected at least 0 and less than 1")
    check_backend(settings["backend"])
