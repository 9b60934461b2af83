"""Launches that are repeated are the launches that Triton made, argument by argument."""

from types import SimpleNamespace

import pytest
import torch

from pbench.kernels import launcher as launcher_module
from pbench.kernels.decode_attention import decode_attention, decode_attention_reference, plan_for
from pbench.kernels.launcher import Checked, Known, Launch, Launcher, SameTensors, Scratch, layout_of, short_key

OPTIONS = {"WIDTH": 8, "IS_WIDE": True, "num_warps": 4}


class FakeKernel:
    """Remembers what goes through Triton, and what goes to a variant that was compiled."""

    arg_names = ("x_ptr", "y_ptr", "scratch_ptr", "stride", "scale", "WIDTH", "IS_WIDE")

    def __init__(self):
        self.through_triton, self.direct, self.make = [], [], dict

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.through_triton.append((grid, arguments, options))
            return self.make({grid: lambda *arguments: self.direct.append((grid, arguments))})

        return launch


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(launcher_module, "is_interpreted", lambda: False)
    monkeypatch.setattr(launcher_module, "is_known_triton", lambda: False)
    return FakeKernel()


def test_the_second_launch_of_a_key_goes_straight_to_what_was_compiled(kernel):
    launch = Launcher(kernel)
    x, y, scratch = torch.zeros(8), torch.zeros(8), Scratch(torch.zeros(4))
    first = Launch((3, 2, 1), (5,), OPTIONS)
    launch("key", (x, y), (0.5,), lambda: first, scratch)
    launch("key", (y, x), (0.25,), pytest.fail, scratch)
    assert kernel.through_triton == [((3, 2, 1), (x, y, *scratch.tensors, 5, 0.5), OPTIONS)]
    assert kernel.direct == [((3, 2, 1), (y.data_ptr(), x.data_ptr(), *scratch.addresses, 5, 0.25, 8, True))]


def test_only_what_is_known_is_launched_again(kernel):
    launch = Launcher(kernel)
    x, y, scratch = torch.zeros(8), torch.zeros(8), Scratch(torch.zeros(4))
    addresses = (x.data_ptr(), y.data_ptr())
    assert not launch.again("key", addresses, (0.5,), scratch)
    assert not kernel.through_triton
    launch("key", (x, y), (0.5,), lambda: Launch((3, 2, 1), (5,), OPTIONS), scratch)
    assert launch.again("key", addresses[::-1], (0.25,), scratch)
    assert kernel.direct == [((3, 2, 1), (y.data_ptr(), x.data_ptr(), *scratch.addresses, 5, 0.25, 8, True))]
    assert not launch.again("other", addresses, (0.5,), scratch)
    assert not launch.again("key", (addresses[0] + 4, addresses[1]), (0.5,), scratch), "aligned otherwise"
    assert len(kernel.direct) == 1


def test_a_descriptor_is_of_what_lies_where_the_launch_says(kernel):
    kernel.arg_names = (*kernel.arg_names[:2], "stride", "scale", "descriptor", *kernel.arg_names[5:])
    launch = Launcher(kernel)
    x, y = torch.zeros(8), torch.zeros(8)
    first = Launch((1, 1, 1), (5,), OPTIONS, lambda address: f"of {address}")
    launch("key", (x, y), (0.5,), lambda: first, described=48)
    launch("key", (x, y), (0.5,), pytest.fail, described=80)
    assert kernel.through_triton == [((1, 1, 1), (x, y, 5, 0.5, "of 48"), OPTIONS)]
    assert kernel.direct == [((1, 1, 1), (x.data_ptr(), y.data_ptr(), 5, 0.5, "of 80", 8, True))]


def test_another_key_and_another_alignment_go_through_triton(kernel):
    kernel.arg_names = kernel.arg_names[:2] + kernel.arg_names[3:]
    launch = Launcher(kernel)
    x, y = torch.zeros(16), torch.zeros(16)
    first = Launch((1, 1, 1), (5,), OPTIONS)
    for key, tensors in (("a", (x, y)), ("b", (x, y)), ("a", (x[1:], y)), ("a", (x, y[1:])), ("a", (x[4:], y))):
        launch(key, tensors, (0.5,), lambda: first)
    assert len(kernel.through_triton) == 4
    assert len(kernel.direct) == 1, "a step of 16 bytes keeps the alignment"


def test_what_refuses_the_first_launch_of_a_key_refuses_every_one(kernel):
    launch = Launcher(kernel)

    def refuse():
        raise ValueError("too wide")

    for _ in range(2):
        with pytest.raises(ValueError, match="too wide"):
            launch("key", (torch.zeros(1),), (), refuse)
    assert not kernel.through_triton


def test_keys_are_forgotten_before_they_are_too_many(kernel, monkeypatch):
    monkeypatch.setattr(launcher_module, "MAX_KEYS", 3)
    kernel.arg_names = kernel.arg_names[:2] + kernel.arg_names[3:]
    launch = Launcher(kernel)
    for key in range(50):
        launch(key, (torch.zeros(1), torch.zeros(1)), (0.5,), lambda: Launch((1, 1, 1), (5,), OPTIONS))
    assert len(launch._known) <= 3
    checked = Checked()
    for layout in range(50):
        checked.add(layout)
        assert layout in checked
        assert len(checked) <= 3


def test_layouts_differ_where_a_check_could():
    x = torch.zeros(4, 6)
    layouts = {layout_of(t, x) for t in (x, x[:3], x.double(), x.mT, x[:, ::2])}
    assert len(layouts) == 5
    assert layout_of(x, x) == layout_of(torch.ones(4, 6), x)


def test_short_keys_tell_keys_apart_even_when_some_were_forgotten(monkeypatch):
    monkeypatch.setattr(launcher_module, "_short_keys", Known())
    assert short_key("a") == short_key("a") != short_key("b")
    monkeypatch.setattr(launcher_module, "MAX_KEYS", 3)
    shorts = [short_key(("key", number)) for number in range(50)]
    assert len(set(shorts)) == 50
    assert len(launcher_module._short_keys) <= 3


def test_the_same_tensors_are_known_and_others_are_looked_at():
    table, wider, lens = torch.zeros(3, 4), torch.zeros(3, 5), torch.zeros(3)
    same = SameTensors()
    assert not same.knows(table, lens)
    key = same.layout_of(table, lens)
    assert same.knows(table, lens)
    assert same.addresses == (table.data_ptr(), lens.data_ptr())
    assert not same.knows(table.clone(), lens), "equal, but another one"
    assert key == same.layout_of(table, lens)
    assert key == same.layout_of(torch.ones(3, 4), lens) == SameTensors().layout_of(table, lens)
    assert key != same.layout_of(wider, lens)
    assert same.addresses == (wider.data_ptr(), lens.data_ptr())
    assert key != same.layout_of(table, torch.zeros(4))
    assert key == same.layout_of(table, lens)


def test_arguments_that_do_not_fit_are_refused_behind_some_that_do(build_cache):
    cache = build_cache([5, 9], num_kv_heads=2, head_dim=16, block_size=16, is_contiguous=False)
    arguments = (cache.kv, cache.table, cache.context_lens)
    decode_attention(torch.zeros(2, 4, 16), *arguments, scale=1.0)
    with pytest.raises(ValueError, match="query is float16"):
        decode_attention(torch.zeros(2, 4, 16, dtype=torch.float16), *arguments, scale=1.0)
    decode_attention(torch.zeros(2, 4, 16), *arguments, scale=1.0)


def test_what_triton_allocates_memory_for_is_launched_by_triton(kernel, monkeypatch):
    monkeypatch.setattr(launcher_module, "is_known_triton", lambda: True)
    x, y, scratch, grid = torch.zeros(8), torch.zeros(8), Scratch(torch.zeros(4)), (3, 2, 1)

    class Instrumented(dict):
        run = SimpleNamespace(global_scratch_size=0, profile_scratch_size=64)

    kernel.make = Instrumented
    launch = Launcher(kernel)
    launch("key", (x, y), (0.5,), lambda: Launch(grid, (5,), OPTIONS), scratch)
    launch("key", (y, x), (0.25,), pytest.fail, scratch)
    assert kernel.direct == [(grid, (y.data_ptr(), x.data_ptr(), *scratch.addresses, 5, 0.25, 8, True))]


@pytest.mark.gpu
def test_repeated_launches_are_right_whatever_is_where(build_cache):
    plans = {}
    for seed, (shift, lens) in enumerate([(0, [40, 7]), (0, [3, 90]), (4, [40, 7]), (1, [64, 1]), (4, [8, 8])]):
        cache = build_cache(
            lens,
            num_kv_heads=2,
            head_dim=64,
            block_size=16,
            is_contiguous=False,
            dtype=torch.float16,
            device="cuda",
            seed=seed,
        )
        table = torch.zeros(2, 8, dtype=torch.int32, device="cuda")
        table[:, : cache.table.shape[1]] = cache.table
        memory = torch.randn(shift + 2 * 8 * 64, dtype=torch.float16, device="cuda")
        query = memory[shift:].view(2, 8, 64)
        expected = decode_attention_reference(query.double(), **cache.double(), scale=0.125)
        plan = plan_for(query, cache.kv, cache.context_lens)
        plans[plan.key] = plan
        for _ in range(3):
            out = torch.full_like(query, float("nan"))
            decode_attention(query, cache.kv, table, cache.context_lens, scale=0.125, out=out, plan=plan)
            torch.testing.assert_close(out.double(), expected, rtol=4e-3, atol=4e-3)
    assert len(plans) == 1


def test_triton_gets_the_arguments_of_its_own_launch(run_with_compiler):
    assert run_with_compiler(__file__).split() == [
        "decode_plan",
        "decode_attention",
        "hopper_decode",
        "shared_attention",
        "prefill_attention",
        "hopper_prefill",
        "rotary_write_kv",
    ]


def check_twice(launches, call, num_rebuilt=0):
    """The first call goes through Triton, the second does not: what reaches the driver must be the same.

    But for the addresses of the last ``num_rebuilt`` tensors, which each call makes itself.
    """
    from triton import knobs

    call()
    call()
    enter_hook = knobs.runtime.launch_enter_hook
    enter_hook.add(print)
    call()
    enter_hook.remove(print)
    ours, again, observed = launches
    launches.clear()
    metadata, enter, _exit = observed.observers
    assert metadata.get()["name"].endswith("_kernel")
    assert enter is enter_hook
    assert again.observers == (None, None, None), "nobody listens"
    places = [place for place, argument in enumerate(ours.arguments) if isinstance(argument, torch.Tensor)]
    rebuilt = places[len(places) - num_rebuilt :]
    for place, (first, second) in enumerate(zip(ours.arguments, again.arguments, strict=True)):
        if place in rebuilt:
            assert isinstance(second, int)
        elif isinstance(first, torch.Tensor):
            assert first.data_ptr() == second
        else:
            assert first == second
            assert type(first) is type(second)


def check_against_triton():
    from driver_without_gpu import without_a_gpu

    from pbench.kernels import hopper_decode
    from pbench.kernels.decode_attention import _plan, decode_attention_triton
    from pbench.kernels.decode_plan import plan_decode
    from pbench.kernels.hopper_prefill import hopper_prefill_attention
    from pbench.kernels.prefill_attention import prefill_attention_triton
    from pbench.kernels.rotary_write_kv import HeadNorms, Rotation, rotary_write_kv_triton
    from pbench.kernels.shared_attention import (
        MAX_LEVELS,
        MAX_TILES,
        TILE_FIELDS,
        SharedRuns,
        shared_attention_triton,
    )
    from pbench.kernels.tiling import PrefillTiling, SharedTiling

    launches = without_a_gpu()
    dtype = torch.bfloat16
    kv, packed = torch.zeros(9, 2, 2, 16, 64, dtype=dtype), torch.zeros(3, 12, 64, dtype=dtype)
    query, key, value = packed.split((8, 2, 2), dim=1)
    table, lens = torch.zeros(3, 4, dtype=torch.int32), torch.ones(3, dtype=torch.int32)
    plan, out = _plan(query, kv, lens), torch.empty(3, 8, 64, dtype=dtype)
    launches.clear()
    check_twice(launches, lambda: _plan(query[:2], kv, lens[:2]), num_rebuilt=2)
    print("decode_plan")
    arguments = {"scale": 0.1, "is_contiguous": False, "plan": plan}
    decode_attention_triton(query, kv, table, lens, out, **arguments)  # the first with a plan is a launch of its own
    launches.clear()
    check_twice(launches, lambda: decode_attention_triton(query, kv, table, lens, out, **arguments))
    print("decode_attention")
    heads = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 64}
    arguments["plan"] = plan_decode(lens, **heads, tiling=hopper_decode.TILING, box=16)
    decode_attention_triton(query, kv, table, lens, out, **arguments)
    launches.clear()
    check_twice(launches, lambda: decode_attention_triton(query, kv, table, lens, out, **arguments))
    for layer in (kv, torch.zeros_like(kv), kv):
        decode_attention_triton(query, layer, table, lens, out, **arguments)
        assert layer.data_ptr() in [one[0] for one in launches.pop().arguments if isinstance(one, tuple)]
    print("hopper_decode")
    one = torch.ones(1, dtype=torch.int32)
    runs = SharedRuns(lens, lens, lens, one, torch.zeros(MAX_TILES, TILE_FIELDS, dtype=torch.int32))
    partial, log_sum = torch.zeros(MAX_LEVELS, 3, 8, 64), torch.zeros(MAX_LEVELS, 3, 8)
    arguments = {"scale": 0.1, "tiling": SharedTiling(32, 32, 4, 1)}
    check_twice(launches, lambda: shared_attention_triton(query, kv, table, runs, partial, log_sum, **arguments))
    print("shared_attention")
    arguments = {"scale": 0.1, "is_contiguous": False, "tiling": PrefillTiling(32, 32, 4, 1)}
    starts = torch.arange(4, dtype=torch.int32)
    check_twice(launches, lambda: prefill_attention_triton(query, kv, table, starts, lens, out, **arguments))
    print("prefill_attention")
    check_twice(launches, lambda: hopper_prefill_attention(query, kv, table, starts, lens, out, scale=0.1))
    print("hopper_prefill")
    norms = HeadNorms(torch.ones(64, dtype=dtype), torch.ones(64, dtype=dtype), 1e-6)
    positions = torch.zeros(3, dtype=torch.int64)
    for rotation in (Rotation(torch.zeros(9, 2, 32), positions), Rotation(torch.zeros(9, 2, 32), positions, norms)):
        check_twice(launches, lambda: rotary_write_kv_triton(query, key, value, rotation, kv, positions))  # noqa: B023
    print("rotary_write_kv")


if __name__ == "__main__":
    check_against_triton()
