"""The released networks under timm's roof: `timm.create_model("vim_tiny_patch16_224")` after `import vimlearn`.

| name                            | d   | stride | tokens | parameters |
|---------------------------------|-----|--------|--------|------------|
| `vim_tiny_patch16_224`          | 192 | 16     | 197    | 7,148,008  |
| `vim_small_patch16_224`         | 384 | 16     | 197    | 25,796,584 |
| `vim_base_patch16_224`          | 768 | 16     | 197    | 97,598,440 |
| `vim_tiny_patch16_stride8_224`  | 192 | 8      | 730    | 7,250,344  |
| `vim_small_patch16_stride8_224` | 384 | 8      | 730    | 26,001,256 |
| `vim_base_patch16_stride8_224`  | 768 | 8      | 730    | 98,007,784 |

All: 24 blocks, 16 states, class token in the middle, RMSNorm (Vim paper, section 3.5). `pretrained=True`
fetches the published weights where there are any: none exist for the base network with stride 8.
"""

__all__: list[str] = []

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from .checkpoint import load_checkpoint
from .errors import VimlearnError
from .vim import VisionMamba


def _cfg(**kwargs) -> dict:
    """Return timm's description of input and evaluation transform, as in the published code."""
    return {"input_size": (3, 224, 224), "num_classes": 1000, "crop_pct": 0.875, "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "first_conv": "patch_embed.proj",
            "classifier": "head", "license": "apache-2.0", **kwargs}


default_cfgs = generate_default_cfgs({
    "vim_tiny_patch16_224.in1k": _cfg(),
    "vim_small_patch16_224.in1k": _cfg(),
    "vim_base_patch16_224.in1k": _cfg(),
    "vim_tiny_patch16_stride8_224.in1k": _cfg(),
    "vim_small_patch16_stride8_224.in1k": _cfg(),
    "vim_base_patch16_stride8_224.in1k": _cfg(),
})

PUBLISHED = {
    "vim_tiny_patch16_224": "hustvl/Vim-tiny-midclstok/vim_t_midclstok_76p1acc.pth",
    "vim_tiny_patch16_stride8_224": "hustvl/Vim-tiny-midclstok/vim_t_midclstok_ft_78p3acc.pth",
    "vim_small_patch16_224": "hustvl/Vim-small-midclstok/vim_s_midclstok_80p5acc.pth",
    "vim_small_patch16_stride8_224": "hustvl/Vim-small-midclstok/vim_s_midclstok_ft_81p6acc.pth",
    "vim_base_patch16_224": "hustvl/Vim-base-midclstok/vim_b_midclstok_81p9acc.pth",
}


RELEASED = tuple(name.split(".")[0] for name in default_cfgs)


def published_file(name: str, source: str | None = None) -> str:
    """Return where the weights of a released network are: `source`, with the file's name added where it is the hub's
    repository of that network; the published file for None. Raises VimlearnError where none is published.
    """
    if source is None and name not in PUBLISHED:
        raise VimlearnError(f"no weights are published for {name}; expected one of {', '.join(PUBLISHED)}")
    published = f"hub:{PUBLISHED[name]}" if name in PUBLISHED else ""
    if source is None or published.rpartition("/")[0] == f"hub:{source.removeprefix('hub:')}":
        return published
    return source


def _create(name: str, pretrained: bool, **kwargs) -> VisionMamba:
    # timm would unpickle the published file by itself; `load_checkpoint` reads it safely.
    if pretrained and kwargs.get("features_only"):
        raise VimlearnError("pretrained=True and features_only=True do not go together here; "
                            "build the model, then call its forward_intermediates")
    model = build_model_with_cfg(VisionMamba, name, pretrained=False,
                                 feature_cfg={"out_indices": 3, "feature_cls": "getter"}, **kwargs)
    if pretrained:
        load_checkpoint(model, _source(name, model.pretrained_cfg), reset_head=True)
    return model


def _source(name: str, cfg: dict) -> str:
    """Return where the weights are: what the caller's timm settings name, else the published file."""
    if cfg.get("file") or cfg.get("url"):
        return str(cfg.get("file") or cfg.get("url"))
    if cfg.get("hf_hub_id"):
        return "/".join([cfg["hf_hub_id"], cfg.get("hf_hub_filename") or "model.safetensors"])
    return published_file(name)


@register_model
def vim_tiny_patch16_224(pretrained: bool = False, **kwargs) -> VisionMamba:
    """Vim-Ti: 7.1 M parameters, 197 tokens."""
    return _create("vim_tiny_patch16_224", pretrained, **{"embed_dim": 192, **kwargs})


@register_model
def vim_small_patch16_224(pretrained: bool = False, **kwargs) -> VisionMamba:
    """Vim-S: 25.8 M parameters, 197 tokens."""
    return _create("vim_small_patch16_224", pretrained, **{"embed_dim": 384, **kwargs})


@register_model
def vim_base_patch16_224(pretrained: bool = False, **kwargs) -> VisionMamba:
    """Vim-B: 97.6 M parameters, 197 tokens."""
    return _create("vim_base_patch16_224", pretrained, **{"embed_dim": 768, **kwargs})


@register_model
def vim_tiny_patch16_stride8_224(pretrained: bool = False, **kwargs) -> VisionMamba:
    """Vim-Ti with overlapping patches: 7.3 M parameters, 730 tokens."""
    return _create("vim_tiny_patch16_stride8_224", pretrained, **{"embed_dim": 192, "stride": 8, **kwargs})


@register_model
def vim_small_patch16_stride8_224(pretrained: bool = False, **kwargs) -> VisionMamba:
    """Vim-S with overlapping patches: 26.0 M parameters, 730 tokens."""
    return _create("vim_small_patch16_stride8_224", pretrained, **{"embed_dim": 384, "stride": 8, **kwargs})


@register_model
def vim_base_patch16_stride8_224(pretrained: bool = False, **kwargs) -> VisionMamba:
    """Vim-B with overlapping patches: 98.0 M parameters, 730 tokens."""
    return _create("vim_base_patch16_stride8_224", pretrained, **{"embed_dim": 768, "stride": 8, **kwargs})
