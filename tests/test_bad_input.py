"""Bad input to operations and network: one type of error, which says what was wrong and what was expected."""

import pytest
import timm
import torch
from helpers import scan_inputs

from vimlearn import BidirectionalMixer, VimlearnError, VisionMamba, add_rms_norm, causal_conv1d, selective_scan
from vimlearn.backends import Operation, check_backend

T = torch.ones


def scan(**changes):
    backend = changes.pop("backend", "auto")
    return selective_scan(**(scan_inputs(dtype=torch.float32) | changes), backend=backend)


# The tensors of `scan_inputs` have b, l, e, n = 2, 7, 5, 3.
@pytest.mark.parametrize("changes, words", [
    ({"u": T(7, 5)}, r"u has shape \(7, 5\); expected three sizes \(b, l, channels\)"),
    ({"u": T(2, 7, 4)}, "u has 4 channels but A has 5 rows"),
    ({"u": T(2, 0, 5)}, "which is empty"),
    ({"u": T(0, 7, 5)}, "which is empty"),
    ({"u": T(2, 7, 5, dtype=torch.int64)}, r"u has dtype torch.int64; expected float32"),
    ({"u": T(2, 7, 5, dtype=torch.complex64)}, "u has dtype torch.complex64"),
    ({"u": [1.0]}, r"u is a list; expected a torch.Tensor"),
    ({"u": T(2, 5, 7)}, "u has 7 channels but A has 5 rows"),
    ({"delta": T(2, 5, 7)}, r"delta has shape \(2, 5, 7\); expected \(b, l, e\) = \(2, 7, 5\)"),
    ({"delta": T(2, 7, 5, dtype=torch.bfloat16)}, "delta has dtype torch.bfloat16; expected torch.float32"),
    ({"delta": None}, "delta is a NoneType"),
    ({"A": T(5)}, r"A has shape \(5,\); expected \(e, n\) = \(5, number of states\)"),
    ({"A": T(5, 0)}, r"A has shape \(5, 0\)"),
    ({"A": T(5, 3).double()}, "A has dtype torch.float64; expected torch.float32"),
    ({"A": None}, "A has type NoneType"),
    ({"B": T(2, 3, 7)}, r"B has shape \(2, 3, 7\); expected \(b, l, n\) = \(2, 7, 3\)"),
    ({"C": T(2, 7, 4)}, r"C has shape \(2, 7, 4\)"),
    ({"D": T(3)}, r"D has shape \(3,\); expected \(e\) = \(5,\)"),
    ({"z": T(1, 7, 5)}, r"z has shape \(1, 7, 5\)"),
    ({"delta_bias": T(5, dtype=torch.bfloat16)}, "delta_bias has dtype torch.bfloat16"),
    ({"B": T(2, 7, 3, device="meta")}, "B is on meta and the input on cpu; move both to one device"),
    ({"backend": "paralel"}, "unknown backend 'paralel', did you mean 'parallel'"),
    ({"backend": "cuda"}, "unknown backend 'cuda'"),
    ({"backend": None}, "unknown backend None"),
    ({"backend": "triton"}, "no backend 'triton' for device 'cpu'; expected one of auto, numba, parallel, loop, exp")])
def test_scan(changes, words):
    with pytest.raises(VimlearnError, match=words):
        scan(**changes)


def test_bfloat16_scan_wants_float32_parameters():
    tensors = scan_inputs(dtype=torch.bfloat16)
    with pytest.raises(VimlearnError, match=r"A has dtype torch.bfloat16; expected torch.float32"):
        selective_scan(**(tensors | {"A": tensors["A"].bfloat16()}))


@pytest.mark.parametrize("arguments, words", [
    ((T(2, 5), T(5, 4)), "x has shape"),
    ((T(2, 7, 5), T(4, 4)), "weight has shape .* e = 5, the channels"),
    ((T(2, 7, 5), T(5)), "weight has shape"),
    ((T(2, 7, 5), T(5, 0)), "weight has shape"),
    ((T(2, 7, 5), T(5, 4).double()), "weight has dtype torch.float64"),
    ((T(2, 7, 5), T(5, 4), T(4)), "bias has shape"),
    ((T(2, 0, 5), T(5, 4)), "which is empty")])
def test_convolution(arguments, words):
    with pytest.raises(VimlearnError, match=words):
        causal_conv1d(*arguments)


def test_unknown_activation():
    with pytest.raises(VimlearnError, match="unknown activation 'relu'"):
        causal_conv1d(T(2, 7, 5), T(5, 4), activation="relu")


@pytest.mark.parametrize("arguments, words", [
    ((T(2, 5), None, T(5)), "h has shape"), ((T(2, 7, 5), None, T(4)), "weight has shape"),
    ((T(2, 7, 5), T(2, 6, 5), T(5)), "the residual has shape")])
def test_norm(arguments, words):
    with pytest.raises(VimlearnError, match=words):
        add_rms_norm(*arguments)


def test_mixer():
    with pytest.raises(VimlearnError, match=r"expected .* with d = 32"):
        BidirectionalMixer(32)(T(2, 7, 16))


@pytest.mark.parametrize("settings, words", [
    ({"img_size": 10}, "smaller than one patch of 16"), ({"img_size": (224, 8)}, "smaller than one patch"),
    ({"img_size": 0}, "img_size is 0"), ({"img_size": "224"}, "img_size is '224'"),
    ({"img_size": (1, 2, 3)}, r"img_size is \(1, 2, 3\)"),
    ({"depth": 0}, "depth is 0; expected an int of at least 1"), ({"embed_dim": 1.5}, "embed_dim is 1.5"),
    ({"patch_size": -1}, "patch_size is -1"), ({"stride": 0}, "stride is 0"),
    ({"num_classes": -1}, "num_classes is -1"),
    ({"class_token": "midle"}, "did you mean 'middle'"), ({"class_token": None}, "expected global_pool='avg'"),
    ({"global_pool": "mean"}, "unknown global_pool 'mean'"), ({"norm": "rsm"}, "did you mean 'rms'"),
    ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0"), ({"backend": "tritn"}, "did you mean 'triton'"),
    ({"d_state": 0}, "d_state is 0"), ({"norm_eps": -1.0}, "norm_eps is -1.0; expected more than 0"),
    ({"norm_eps": "x"}, "norm_eps is 'x'"), ({"drop_path_rate": "0.1"}, "drop_path_rate is '0.1'"),
    ({"bidirectional": "no"}, "bidirectional is 'no'; expected True or False")])
def test_network_settings(settings, words):
    with pytest.raises(VimlearnError, match=words):
        VisionMamba(**settings)


@pytest.fixture(scope="module")
def network():
    return VisionMamba(img_size=(16, 24), patch_size=8, num_classes=3, embed_dim=16, depth=1)


@pytest.mark.parametrize("images, words", [
    (T(1, 3, 16, 16), "16 x 16 pixels but the network is built for 16 x 24"),
    (T(1, 1, 16, 24), r"found \(1, 1, 16, 24\); expected a tensor \(b, 3, 16, 24\)"),
    (T(3, 16, 24), r"found \(3, 16, 24\)"), (T(0, 3, 16, 24), "with b at least 1"),
    (T(1, 3, 16, 24, dtype=torch.uint8), "dtype torch.uint8"), (T(1, 3, 16, 24).double(), "dtype torch.float64"),
    (T(1, 3, 16, 24, device="meta"), "on meta and the network on cpu"), ("cat.jpg", "found str")])
def test_images(network, images, words):
    with pytest.raises(VimlearnError, match=words):
        network(images)


@pytest.mark.parametrize("indices", [0, 5, [], [1], [-2]])
def test_block_indices(network, indices):
    with pytest.raises(VimlearnError, match="block indices"):
        network.forward_intermediates(T(1, 3, 16, 24), indices=indices)


def test_other_methods(network):
    with pytest.raises(VimlearnError, match="unknown output_fmt"):
        network.forward_intermediates(T(1, 3, 16, 24), output_fmt="NHWC")
    with pytest.raises(VimlearnError, match="unknown global_pool"):
        network.reset_classifier(3, "max")
    with pytest.raises(VimlearnError, match="smaller than one patch"):
        network.set_input_size(4)
    assert network(T(1, 3, 16, 24)).shape == (1, 3)


def test_no_weights_for_base_stride8():
    with pytest.raises(VimlearnError, match="no weights are published for vim_base_patch16_stride8_224"), \
            torch.device("meta"):
        timm.create_model("vim_base_patch16_stride8_224", pretrained=True)


def test_a_backend_that_cannot_be_imported_says_so():
    def load():
        import a_module_that_does_not_exist
        return a_module_that_does_not_exist

    operation = Operation("scan")
    operation.register("numba", load, devices=("cpu",))
    with pytest.raises(VimlearnError, match="backend 'numba' of scan cannot be loaded"):
        operation.choose("numba", torch.device("cpu"))


def test_auto_goes_on_to_the_next_backend_with_a_warning():
    def load():
        raise ImportError("no compiler")

    operation = Operation("scan")
    operation.register("triton", load)
    operation.register("loop", lambda: "loop")
    with pytest.warns(UserWarning, match="no compiler; trying the next backend"):
        assert operation.choose("auto", torch.device("cpu")) == "loop"


def test_the_residual_has_the_dtype_of_sums():
    for h, residual in ((T(1, 2, 3), T(1, 2, 3).double()), (T(1, 2, 3).bfloat16(), T(1, 2, 3).bfloat16())):
        with pytest.raises(VimlearnError, match=r"the residual has dtype .*; expected torch\.float32"):
            add_rms_norm(h, residual, T(3))


def test_a_mixer_refuses_no_tokens_and_no_images():
    mixer = BidirectionalMixer(8)
    for shape in ((1, 0, 8), (0, 4, 8)):
        with pytest.raises(VimlearnError, match="not empty"):
            mixer(T(*shape))


def test_a_network_takes_a_backend_that_only_one_operation_has():
    model = VisionMamba(img_size=8, patch_size=8, num_classes=3, embed_dim=16, depth=1, backend="parallel")
    assert model(T(1, 3, 8, 8)).shape == (1, 3)
    with pytest.raises(VimlearnError, match="add_rms_norm has no backend 'parallel'"):
        add_rms_norm(T(1, 2, 3), None, T(3), backend="parallel")


def test_backends_are_tried_in_order():
    operation = Operation("scan")
    operation.register("loop", lambda: "loop")
    operation.register("numba", lambda: "numba", devices=("cpu",), before="loop")
    assert operation.choose("auto", torch.device("cpu")) == "numba"
    assert operation.choose("auto", torch.device("meta")) == "loop"
    assert operation.available(torch.device("cpu")) == ["numba", "loop"]


def test_every_name_is_accepted():
    assert [check_backend(name) for name in ("auto", "loop", "parallel", "numba", "triton")]
