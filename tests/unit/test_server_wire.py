"""What goes over the wire comes back within the format's bounds, and what top_k keeps is not lost."""

import pickle
import subprocess
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from orchestrator.parameter_server.wire import BLOCK, WIRES, Encoder, Floats, Wire, decode, largest

SIZES = (1, 7, BLOCK, BLOCK + 1, 3 * BLOCK - 5)
ANY_BITS = hnp.arrays(np.uint32, st.integers(1, 300)).map(lambda bits: bits.view(np.float32))
FINITE = hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(-(2.0**100), 2.0**100, width=32))
# Few different values: many equals for top_k to choose among.
COARSE = hnp.arrays(np.float32, st.integers(1, 200), elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -3.0]))
SMALLEST_BF16 = np.float32(2.0**-133)  # a subnormal step
SMALLEST_FP16 = np.float32(2.0**-24)


def drawn(size: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)


def there_and_back(wire: Wire, values: Floats, **options: Any) -> Floats:
    return decode(Encoder(wire, len(values), **options).encode(values))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("wire", WIRES)
def test_what_comes_back_has_the_size_and_is_near(wire: Wire, size: int) -> None:
    values = drawn(size)
    found = there_and_back(wire, values, fraction=1.0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, values, rtol=2**-8, atol=1e-7)


@pytest.mark.parametrize("wire", WIRES)
def test_decoding_into_an_array_overwrites_all_of_it(wire: Wire) -> None:
    encoded = Encoder(wire, 1000, fraction=0.1).encode(drawn(1000))
    into = np.full(1000, np.nan, np.float32)
    assert decode(encoded, into) is into
    assert np.array_equal(into, decode(encoded))


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("edges", [(0, 1000), (0, 1, 999, 1000), (0, 0, 500, 500, 1000)])
def test_parts_decode_to_parts_of_the_whole(wire: Wire, edges: tuple[int, ...]) -> None:
    encoded = Encoder(wire, 1000, fraction=0.1).encode(drawn(1000))
    parts = [decode(encoded.part(start, stop)) for start, stop in pairwise(edges)]
    assert np.array_equal(np.concatenate(parts), decode(encoded))


@pytest.mark.parametrize("wire", WIRES)
def test_a_second_gradient_is_written_as_if_it_were_the_first(wire: Wire) -> None:
    encoder = Encoder(wire, 50, fraction=1.0)
    encoder.encode(drawn(50, seed=1))
    assert np.array_equal(decode(encoder.encode(drawn(50))), there_and_back(wire, drawn(50), fraction=1.0))


def test_fp32_is_neither_copied_nor_pickled_into_the_message() -> None:
    values = drawn(1000)
    encoded = Encoder("fp32", 1000).encode(values)
    assert decode(encoded) is values
    buffers: list[pickle.PickleBuffer] = []
    message = pickle.dumps(encoded, protocol=5, buffer_callback=buffers.append)
    assert len(message) < 1000
    assert [buffer.raw().nbytes for buffer in buffers] == [4000] == [encoded.num_bytes]
    assert np.array_equal(decode(pickle.loads(message, buffers=buffers)), values)


@given(ANY_BITS)
@example(np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F7FFFFF, 0x00007FFF, 0x00008000], np.uint32).view(np.float32))
def test_bf16_is_the_cast_of_torch_bit_for_bit(values: Floats) -> None:
    """But for the bits of a NaN, which differ between torch's own code for vectors and for single values."""
    cast = torch.from_numpy(values).to(torch.bfloat16)
    found = Encoder("bf16", len(values)).encode(values)
    assert np.array_equal(np.isnan(values), np.isnan(decode(found)))
    numbers = ~np.isnan(values)
    assert np.array_equal(found.values[numbers], cast.view(torch.uint16).numpy()[numbers])


def test_every_bf16_value_is_itself_again() -> None:
    halves = np.arange(2**16, dtype=np.uint32)
    values = (halves << 16).view(np.float32)
    numbers = ~np.isnan(values)
    encoded = Encoder("bf16", len(values)).encode(values)
    assert np.array_equal(encoded.values[numbers], halves[numbers])
    assert np.array_equal(decode(encoded)[numbers], values[numbers])
    assert np.isnan(decode(encoded)[~numbers]).all()


@given(FINITE)
def test_bf16_is_within_half_a_unit_of_its_last_place(values: Floats) -> None:
    error = np.abs(there_and_back("bf16", values).astype(np.float64) - values)
    assert (error <= np.maximum(np.abs(values) * 2.0**-8, SMALLEST_BF16 / 2)).all()


@given(ANY_BITS)
@example(np.array([65504, 65519.996, 65520, 1e38, -65520, np.inf, -np.inf, np.nan], np.float32))
def test_fp16_is_the_cast_of_torch_but_saturates(values: Floats) -> None:
    """Infinities and NaN stay what they are: the server has to see them."""
    found = there_and_back("fp16", values)
    cast = torch.from_numpy(values).to(torch.float16).float().numpy()
    beyond = np.isinf(cast) & np.isfinite(values)
    assert np.array_equal(found[beyond], np.copysign(65504, values[beyond]))
    np.testing.assert_array_equal(found[~beyond], cast[~beyond])


@given(hnp.arrays(np.float32, 100, elements=st.floats(-65504, 65504, width=32)))
def test_fp16_is_within_half_a_unit_of_its_last_place(values: Floats) -> None:
    error = np.abs(there_and_back("fp16", values).astype(np.float64) - values)
    assert (error <= np.maximum(np.abs(values) * 2.0**-11, SMALLEST_FP16 / 2)).all()


def first_largest(values: Floats, num: int) -> list[int]:
    """The definition: by magnitude, then by place; zeros never."""
    order = sorted(range(len(values)), key=lambda index: (-abs(float(values[index])), index))
    return sorted(index for index in order[:num] if values[index] != 0)


@given(st.one_of(FINITE, COARSE), st.integers(1, 300))
def test_largest_are_the_largest_and_of_equals_the_first(values: Floats, num: int) -> None:
    assert largest(values, num).tolist() == first_largest(values, num)


def concentrated(size: int) -> Floats:
    """All that is large lies where the sample does not look."""
    values = np.zeros(size, np.float32)
    values[1:200] = drawn(199)
    return values


@pytest.mark.parametrize("num", [1, 100, 5000, 200_000, 299_999, 300_000])
@pytest.mark.parametrize(
    "values",
    [drawn(300_000), np.round(drawn(300_000)), concentrated(300_000), np.zeros(300_000, np.float32)],
    ids=["normal", "equals", "concentrated", "zeros"],
)
def test_largest_are_exact_where_a_sample_guesses_their_bound(values: Floats, num: int) -> None:
    by_magnitude = np.argsort(-np.abs(values), kind="stable")[:num]
    expected = np.sort(by_magnitude[values[by_magnitude] != 0])
    assert np.array_equal(largest(values, num), expected)


@given(st.integers(1, 60), st.integers(1, 8), st.floats(0.01, 1), st.integers(0, 2**32 - 1))
def test_what_was_sent_and_what_is_kept_are_the_sum_of_the_gradients(
    size: int, steps: int, fraction: float, seed: int
) -> None:
    """Each addition to the residual rounds by 2^-24 of a sum that is at most that of the magnitudes."""
    encoder = Encoder("top_k", size, fraction=fraction)
    gradients = [drawn(size, seed + step) for step in range(steps)]
    exact = [gradient.astype(np.float64) for gradient in gradients]
    sent = sum(decode(encoder.encode(gradient)).astype(np.float64) for gradient in gradients)
    magnitudes = sum(np.abs(gradient) for gradient in exact)
    difference = sent + encoder.residual_state()["residual"] - sum(exact)
    assert (np.abs(difference) <= steps * 2.0**-24 * magnitudes).all()


@given(COARSE, st.floats(0.01, 1))
def test_top_k_sends_its_share_and_keeps_nothing_of_what_it_sent(values: Floats, fraction: float) -> None:
    encoder = Encoder("top_k", len(values), fraction=fraction)
    encoded = encoder.encode(values)
    assert encoded.indices is not None
    assert len(encoded.values) == min(max(1, round(fraction * len(values))), np.count_nonzero(values))
    assert (encoded.values != 0).all()
    assert (encoder.residual_state()["residual"][encoded.indices] == 0).all()


def test_what_waits_is_sent_in_the_end() -> None:
    encoder = Encoder("top_k", 100, fraction=0.1)
    gradient = np.arange(1, 101, dtype=np.float32)
    total = decode(encoder.encode(gradient))
    for _ in range(9):
        total = total + decode(encoder.encode(np.zeros(100, np.float32)))
    assert np.array_equal(total, gradient)


@pytest.mark.parametrize("num_bad", [1, 3, 40])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_sent_first_and_never_kept(bad: float, num_bad: int) -> None:
    """Also where there is more of it than is sent."""
    encoder = Encoder("top_k", 100, fraction=0.05)
    gradient = drawn(100)
    gradient[10 : 10 + num_bad] = bad
    sent = decode(encoder.encode(gradient))
    np.testing.assert_array_equal(sent[10 : 10 + min(num_bad, 5)], np.float32(bad))
    assert np.isfinite(encoder.residual_state()["residual"]).all()
    assert np.isfinite(decode(encoder.encode(drawn(100, seed=1)))).all()


def test_a_worker_that_starts_again_goes_on_with_its_residual() -> None:
    def steps(encoder: Encoder, seeds: range) -> list[bytes]:
        return [decode(encoder.encode(drawn(500, seed))).tobytes() for seed in seeds]

    undisturbed, before, after = (Encoder("top_k", 500) for _ in range(3))
    expected = steps(undisturbed, range(10))
    found = steps(before, range(5))
    after.load(pickle.loads(pickle.dumps(before.residual_state())))
    assert found + steps(after, range(5, 10)) == expected


def test_a_loaded_residual_is_copied() -> None:
    encoder, state = Encoder("top_k", 5), {"residual": np.ones(5, np.float32)}
    encoder.load(state)
    encoder.encode(drawn(5))
    assert np.array_equal(state["residual"], np.ones(5))


@pytest.mark.parametrize("wire", ["fp32", "fp16", "bf16"])
def test_only_top_k_has_a_residual(wire: Wire) -> None:
    encoder = Encoder(wire, 5)
    assert encoder.residual_state() == {}
    encoder.load({})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wire": "fp8"}, "wire: got 'fp8', must be one of fp32, fp16, bf16, top_k"),
        ({"num_elements": 0}, "num_elements: got 0, must be from 1 to 2"),
        ({"fraction": 0.0}, "fraction: got 0, must be above 0 and at most 1"),
        ({"fraction": 1.5}, "fraction: got 1.5, must be above 0"),
        ({"fraction": float("nan")}, "fraction: got nan, must be above 0"),
    ],
)
def test_an_encoder_refuses_what_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoder(**({"wire": "top_k", "num_elements": 5} | options))


@pytest.mark.parametrize(
    "gradient",
    [np.zeros(4, np.float32), np.zeros((5, 1), np.float32), np.zeros(5), np.zeros(10, np.float32)[::2]],
    ids=["size", "shape", "dtype", "strided"],
)
@pytest.mark.parametrize("wire", WIRES)
def test_encode_refuses_another_kind_of_array(wire: Wire, gradient: Any) -> None:
    with pytest.raises(ValueError, match=r"gradient: got .*, must be contiguous float32 \(5,\)"):
        Encoder(wire, 5).encode(gradient)


@pytest.mark.parametrize("wire", WIRES)
def test_decode_refuses_an_array_of_another_size(wire: Wire) -> None:
    with pytest.raises(ValueError, match=r"into: got the shape \(4,\), must be \(5,\)"):
        decode(Encoder(wire, 5).encode(drawn(5)), np.zeros(4, np.float32))


def test_load_refuses_a_residual_of_another_size_or_wire() -> None:
    state = Encoder("top_k", 5).residual_state()
    for other in (Encoder("top_k", 6), Encoder("bf16", 5)):
        with pytest.raises(ValueError, match=r"residual: got .*\(5,\).*, must be .* for (top_k|bf16)"):
            other.load(state)


def test_encoded_tells_its_bytes() -> None:
    values = drawn(1000)
    found = {wire: Encoder(wire, 1000, fraction=0.1).encode(values).num_bytes for wire in WIRES}
    assert found == {"fp32": 4000, "fp16": 2000, "bf16": 2000, "top_k": 800}


def test_what_the_server_imports_knows_no_torch() -> None:
    program = "import sys, orchestrator.parameter_server.wire, orchestrator.parameter_server.shared_memory"
    ask = f"{program}; print(sorted({{'torch', 'ray'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
