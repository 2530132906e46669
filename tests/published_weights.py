"""A file of weights in the form that the published trainer leaves behind."""

import argparse

import torch


def published_content(model, ema, epoch: int = 299) -> dict:
    """Return what that trainer saves after an epoch, counted from 0: its optimiser has a group without decay and one
    with it.
    """
    groups = [[p for p in model.parameters() if (p.dim() > 1) == decays] for decays in (False, True)]
    optimizer = torch.optim.AdamW([{"params": group, "weight_decay": 0.1 * i} for i, group in enumerate(groups)])
    model(torch.randn(1, 3, *model.patch_embed.img_size)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
            "lr_scheduler": {"base_values": [1e-3, 1e-3], "metric": None, "noise_range_t": None}, "epoch": epoch,
            "model_ema": ema.state_dict(), "scaler": "none",
            "args": argparse.Namespace(lr=1e-3, data_path="imagenet", distributed=True, sizes=[1, 2], clip_grad=None)}
