"""Within ``compiling_ahead`` kernels are compiled and nothing is launched."""

import pytest
import torch

from pbench.kernels import compile_ahead as compile_ahead_module
from pbench.kernels.compile_ahead import can_compile_ahead, compiling_ahead, is_compiling_ahead
from pbench.kernels.compiler import HAS_TRITON, is_known_triton, jit, tl
from pbench.kernels.launcher import Launch, Launcher

pytestmark = pytest.mark.skipif(not HAS_TRITON or not is_known_triton(), reason="no Triton whose inner parts we know")


@pytest.fixture
def runs(monkeypatch):
    """How often Triton was asked to launch kernels, and how often to compile only."""
    from triton.runtime.jit import JITFunction

    runs = []
    monkeypatch.setattr(JITFunction, "run", lambda self, *arguments, grid, warmup: runs.append((warmup, grid)))
    return runs


@pytest.fixture
def kernel(runs):
    from triton.runtime.jit import JITFunction

    return JITFunction.__new__(JITFunction)


def test_what_would_be_launched_is_compiled_only(kernel, runs):
    with compiling_ahead():
        assert is_compiling_ahead()
        kernel[(3,)](1, 2)
    assert not is_compiling_ahead()
    kernel[(4,)](1, 2)
    assert runs == [(True, (3,)), (False, (4,))]


def test_an_error_within_ends_it(kernel, runs):
    with pytest.raises(ZeroDivisionError), compiling_ahead():
        kernel[(1,)](1 // 0)
    assert not is_compiling_ahead()
    kernel[(4,)](1)
    assert runs == [(False, (4,))]


@pytest.mark.parametrize(("is_known", "is_interpreted"), [(True, False), (True, True), (False, False)])
def test_only_a_compiler_that_we_know_compiles_ahead(monkeypatch, is_known, is_interpreted):
    monkeypatch.setattr(compile_ahead_module, "is_known_triton", lambda: is_known)
    monkeypatch.setattr(compile_ahead_module, "is_interpreted", lambda: is_interpreted)
    assert can_compile_ahead() == (is_known and not is_interpreted)


def test_a_launcher_neither_launches_what_it_knows_nor_remembers_what_it_compiles(monkeypatch):
    launched = []

    class Kernel:
        arg_names = ("x_ptr",)

        def __getitem__(self, grid):
            return lambda *arguments: {grid: lambda *arguments: launched.append("again")}

    for name in ("is_interpreted", "is_known_triton"):
        monkeypatch.setattr(f"pbench.kernels.launcher.{name}", lambda: False)
    launch, firsts = Launcher(Kernel()), []

    def first():
        firsts.append("asked")
        return Launch((1, 1, 1), (), {})

    compile_ahead_module._active.append(True)
    launch("key", (torch.zeros(4),), (), first)
    compile_ahead_module._active.pop()
    launch("key", (torch.zeros(4),), (), first)
    launch("key", (torch.zeros(4),), (), first)
    assert len(firsts) == 2
    assert launched == ["again"]
    compile_ahead_module._active.append(True)
    launch("key", (torch.zeros(4),), (), first)
    compile_ahead_module._active.pop()
    assert launched == ["again"]


@jit()
def _fill_kernel(out_ptr, SIZE: tl.constexpr):
    tl.store(out_ptr + tl.arange(0, SIZE), tl.zeros([SIZE], tl.float32) + SIZE)


@pytest.mark.gpu
def test_nothing_is_written_ahead_and_nothing_compiled_afterwards(monkeypatch):
    import triton

    compiled = []
    monkeypatch.setattr(triton.knobs.compilation, "listener", lambda *, src, **_: compiled.append(src.name))
    out = torch.full((64,), 7.0, device="cuda")
    with compiling_ahead():
        _fill_kernel[(1,)](out, 32)
        _fill_kernel[(1,)](out, 16)
    assert (out == 7).all()
    assert compiled == ["_fill_kernel"] * 2
    _fill_kernel[(1,)](out, 32)
    assert out.tolist() == [32.0] * 32 + [7.0] * 32
    _fill_kernel[(1,)](out, 16)
    assert out.tolist() == [16.0] * 16 + [32.0] * 16 + [7.0] * 32
    assert len(compiled) == 2
