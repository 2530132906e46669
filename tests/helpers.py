"""What several test files share: inputs of a scan, gradients by name, and a relative error that names the tensor."""

import torch

LENGTHS = (1, 2, 7, 63, 64, 65, 196, 197)


def scan_inputs(b=2, l=7, e=5, n=3, dtype=torch.float64, seed=0, **leave_out):
    """Return the nine tensors of `selective_scan` by name; `D=None` and the like leave one out."""
    g = torch.Generator().manual_seed(seed)

    def normal(*sizes):
        return torch.randn(*sizes, generator=g, dtype=torch.float64)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    A = -torch.rand(e, n, generator=g).double() * 3 - 0.1
    tensors = {"u": normal(b, l, e), "delta": normal(b, l, e), "A": A, "B": normal(b, l, n), "C": normal(b, l, n),
               "D": normal(e), "z": normal(b, l, e), "delta_bias": normal(e)}
    tensors = {k: v.to(wide if k in ("A", "D", "delta_bias") else dtype) for k, v in tensors.items()}
    return {k: v for k, v in tensors.items() if k not in leave_out}


def with_gradients(function, tensors, seed=1):
    """Return the outputs of `function(**tensors)` and the gradients of a randomly weighted sum of them, by name."""
    leaves = {k: v.detach().clone().requires_grad_() for k, v in tensors.items()}
    outputs = function(**leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    g = torch.Generator().manual_seed(seed)
    weights = [torch.randn(out.shape, generator=g, dtype=torch.float64) for out in outputs]
    total = sum((out.double() * w.to(out.device)).sum() for out, w in zip(outputs, weights, strict=True))
    total.backward()
    results = {f"output {i}": out.detach() for i, out in enumerate(outputs)}
    return results | {f"gradient of {k}": v.grad for k, v in leaves.items()}


def assert_near(found, expected, limit):
    """Assert max|found - expected| <= limit * max|expected| for every named tensor."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        got = found[name]
        assert got is not None, f"{name} is missing"
        assert got.shape == value.shape, f"{name} has shape {tuple(got.shape)}, expected {tuple(value.shape)}"
        error = ((got.double() - value.double()).abs().max() / value.double().abs().max().clamp(min=1e-30)).item()
        # `not <=` and not `>`: NaN must fail
        assert error <= limit, f"{name}: relative error {error:.2e}, limit {limit:.0e}"


def strided(x, how):
    """Return a tensor with the values of x that lies in memory in another way."""
    if how == "slice":
        return torch.cat((x, x, x), -1)[..., x.shape[-1]:2 * x.shape[-1]]
    order = {"tokens outside": (1, 0, 2), "channels outside": (2, 0, 1)}[how]
    back = [order.index(i) for i in range(3)]
    return x.permute(order).contiguous().permute(back)
