"""Every kernel compiles for a Hopper GPU, on any machine: the interpreter accepts what the compiler refuses.

This file runs itself in another process, where the compiler is on.
"""

import json
import traceback
from pathlib import Path

import pytest

import pbench

FULL = {"WINDOW": None, "SOFT_CAP": None}
CUT = {"WINDOW": 4096, "SOFT_CAP": 50.0}
HEADS = {"NUM_HEADS": 32, "NUM_KV_HEADS": 8}
INTEGER_POINTERS = {
    "table_ptr": "*i32",
    "context_lens_ptr": "*i32",
    "counter_ptr": "*i32",
    "query_start_ptr": "*i32",
    "slots_ptr": "*i64",
    "pairs_ptr": "*i64",
    "positions_ptr": "*i64",
    "own_start_ptr": "*i32",
    "num_levels_ptr": "*i32",
    "members_ptr": "*i32",
    "num_tiles_ptr": "*i32",
    "tiles_ptr": "*i32",
    "schedule_ptr": "*i32",
    "num_arrived_ptr": "*i32",
    "keys_ptr": "*i64",
    "seen_ptr": "*u8",
    "tokens_ptr": "*i64",
    "tile_tokens_ptr": "*i32",
    "tables_ptr": "*i32",
    "step_tables_ptr": "*i32",
    "rows_ptr": "*i32",
    "is_kv_settled_ptr": "*i32",
    "change_starts_ptr": "*i32",
    "change_ends_ptr": "*i32",
    "entries_ptr": "*i32",
}
FLOAT32_POINTERS = dict.fromkeys(
    ("partial_ptr", "log_sum_ptr", "shared_partial_ptr", "shared_log_sum_ptr", "cos_sin_ptr", "tile_logits_ptr"),
    "*fp32",
)
FLOAT64_POINTERS = {"rules_ptr": "*fp64"}
FLOATS = ("scale_log2", "value_scale", "key_factor", "value_factor", "fp8_max", "eps")


def modules_with_kernels():
    kernels = Path(pbench.__file__).parent / "kernels"
    return sorted(path.stem for path in kernels.glob("*.py") if "_kernel(" in path.read_text())


@pytest.fixture(scope="module")
def failures(run_with_compiler):
    """Of every module that was tried: why it does not compile, or nothing."""
    return json.loads(run_with_compiler(__file__).splitlines()[-1])


@pytest.mark.parametrize("module", modules_with_kernels())
def test_every_kernel_compiles(module, failures):
    assert not failures[module], failures[module]


def compile_all():
    failures = {}
    for module in modules_with_kernels():
        try:
            globals()[f"compile_{module}"]()
            failures[module] = ""
        except Exception:
            failures[module] = traceback.format_exc()
    print(json.dumps(failures))


def compile_kernel(kernel, constants, dtype="bf16", is_fp8=False, tiles=None, **options):
    from triton.compiler import ASTSource

    descriptors = {name: f"tensordesc<{dtype}{list(tile)}>" for name, tile in (tiles or {}).items()}
    return compile_source(ASTSource, kernel, constants, dtype, is_fp8, descriptors, options)


def compile_gluon_kernel(kernel, constants, descriptors, dtype, is_fp8=False, **options):
    from triton.experimental.gluon._runtime import GluonASTSource

    return compile_source(GluonASTSource, kernel, constants, dtype, is_fp8, descriptors, options)


def compile_source(source, kernel, constants, dtype, is_fp8, descriptors, options):
    import triton
    from triton.backends.compiler import GPUTarget

    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in descriptors:
            signature[name] = descriptors[name]
        elif name.endswith("_ptr"):
            signature[name] = (INTEGER_POINTERS | FLOAT32_POINTERS | FLOAT64_POINTERS).get(name, f"*{dtype}")
            if is_fp8 and name == "kv_ptr":
                signature[name] = "*fp8e4nv"
            if name not in INTEGER_POINTERS:  # those are not specialised on their alignment
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
    return triton.compile(
        source(kernel, signature, constants, attributes), target=GPUTarget("cuda", 90, 32), options=options
    )


def check_wait_in_loop(ptx):
    """K and V are asked for before the loop, in which nothing is read before the wait, and then the queries are."""
    before, after = ptx.split("@is_time griddepcontrol.wait")
    assert "cp.async.cg" in before
    assert "ld.global" not in before[before.rindex("$L__BB") :]
    assert "ld.global" in after[: after.index("cp.async.wait_group")]


def check_waits_first(ptx):
    """So that what the kernel before it wrote is there before the next one begins, a decode that reads settled KV."""
    assert ptx.index("griddepcontrol.wait") < ptx.index("griddepcontrol.launch_dependents")


def compile_choose_tokens():
    from pbench.kernels import choose_tokens

    for has_seen, dtype in ((False, "bf16"), (True, "fp32")):
        row = {"VOCAB_SIZE": 151936, "HAS_SEEN": has_seen, "TILE": 4096, "NUM_PIVOTS": 8}
        compile_kernel(choose_tokens._choose_tokens_kernel, row, dtype, num_warps=16)


def compile_copy_blocks():
    from pbench.kernels import copy_blocks

    compile_kernel(copy_blocks._copy_blocks_kernel, {"BLOCK_NUMEL": 32768, "TILE_SIZE": 2048}, num_warps=8)


def compile_copy_numbers():
    from pbench.kernels import copy_numbers

    for is_upload in (False, True):
        numbers = {"IS_UPLOAD": is_upload, "TILE_SIZE": copy_numbers.TILE_SIZE}
        compile_kernel(copy_numbers._copy_numbers_kernel, numbers)


def addressings():
    """How the attention of all GPUs finds K and V, and their dtype."""
    for head_dim, dtype, is_contiguous in ((128, "bf16", False), (128, "bf16", True), (80, "fp32", False)):
        # Without tensor cores, which float32 does not use, a large tile is much code.
        tile = {"TILE_TOKENS": 16 if dtype == "fp32" else 32, "TILE_DIMS": 128}
        addressing = {"HEAD_DIM": head_dim, "BLOCK_SIZE": 16, "IS_CONTIGUOUS": is_contiguous}
        yield HEADS | tile | addressing, dtype


def compile_decode_attention():
    from pbench.kernels import decode_attention

    kernel = decode_attention._decode_attention_kernel
    rows = {"NUM_ROWS": 8, "NUM_ABREAST": 4, "NUM_FIELDS": 9, "TILE_ROWS": 4, "DOT_ROWS": 16, "IS_EARLY": True}
    rows |= {"TILE_PIECES": 16, "FEW_PIECES": 8}
    for addressing, dtype in addressings():
        is_paged = not addressing["IS_CONTIGUOUS"]
        decode = addressing | rows | {"READS_AHEAD": is_paged}
        for has_shared in {False, is_paged}:
            for is_fp8 in {False, dtype == "bf16"}:
                whole = decode | FULL | {"HAS_SHARED": has_shared}
                compiled = compile_kernel(kernel, whole, dtype, is_fp8, maxnreg=168)
                if is_paged:
                    check_wait_in_loop(compiled.asm["ptx"])
        compile_kernel(kernel, decode | CUT | {"HAS_SHARED": False}, dtype, maxnreg=168)


def compile_prefill_attention():
    from pbench.kernels import prefill_attention

    kernel = prefill_attention._prefill_attention_kernel
    for addressing, dtype in addressings():
        prefill = addressing | FULL | {"TILE_SEQUENCES": 64, "IS_MASKED_THROUGHOUT": False}
        prefill["TILE_ROWS"] = 16 if dtype == "fp32" else 32
        for variant in ({}, {"IS_MASKED_THROUGHOUT": True}, CUT):
            compile_kernel(kernel, prefill | variant, dtype)
        if dtype == "bf16":
            compile_kernel(kernel, prefill, dtype, is_fp8=True)


def compile_hopper_prefill():
    from pbench.kernels import hopper_prefill

    for head_dim, block_size, dtype, cut, tile_tokens in (
        (128, 16, "bf16", FULL, 64),
        (64, 64, "fp16", CUT, 128),
        (128, 256, "bf16", FULL, 128),
    ):
        box = min(block_size, tile_tokens)
        paged = HEADS | cut | {"HEAD_DIM": head_dim, "BLOCK_SIZE": block_size, "TILE_TOKENS": tile_tokens, "BOX": box}
        boxes = f"tensordesc<{dtype}[{box}, {hopper_prefill.PANEL_DIMS.value}],{hopper_prefill.SWIZZLED.value!r}>"
        compile_gluon_kernel(hopper_prefill._hopper_prefill_kernel, paged, {"kv": boxes}, dtype, num_warps=4)


def compile_hopper_decode():
    from pbench.kernels import hopper_decode, hopper_kv

    for head_dim, block_size, dtype, is_contiguous, tiling, num_ahead in (
        (128, 16, "bf16", False, hopper_decode.TILING, 2),
        (64, 256, "fp16", False, hopper_decode.TILING_OF_FEW, 0),
        (128, 1, "bf16", True, hopper_decode.TILING, 2),
    ):
        box = 64 if is_contiguous else min(block_size, 64)
        paged = HEADS | {"HEAD_DIM": head_dim, "BLOCK_SIZE": block_size, "IS_CONTIGUOUS": is_contiguous, "BOX": box}
        paged |= {"NUM_ABREAST": 4, "NUM_FIELDS": 9, "TILE_ROWS": 4, "TILES_AHEAD": num_ahead}
        paged |= {"NUM_HELD": tiling.tiles_in_flight * 128 // head_dim}
        boxes = f"tensordesc<{dtype}[{box}, {hopper_kv.PANEL_DIMS.value}],{hopper_kv.SWIZZLED.value!r}>"
        registers = hopper_decode.num_registers(tiling)
        compiled = compile_gluon_kernel(
            hopper_decode._hopper_decode_kernel, paged, {"kv": boxes}, dtype, num_warps=4, maxnreg=registers
        )
        assert compiled.metadata.shared * tiling.programs_per_sm < 227 * 1024


def compile_shared_attention():
    from pbench.kernels import shared_attention

    shared = HEADS | {"HEAD_DIM": 128, "BLOCK_SIZE": 16, "TILE_TOKENS": 64, "TILE_DIMS": 128, "TILE_FIELDS": 5}
    shared |= {"TILE_ROWS": 128, "IS_EARLY": True}
    for cap in (None, 50.0):
        capped = shared | {"SOFT_CAP": cap}
        compiled = compile_kernel(shared_attention._shared_attention_kernel, capped, num_warps=8, num_stages=3)
        check_waits_first(compiled.asm["ptx"])


def compile_matmul():
    from pbench.kernels import matmul

    for dtype, tiling in (("bf16", matmul.TILING_16_BIT), ("fp32", matmul.TILING_32_BIT)):
        product = {
            "HAS_BIAS": dtype == "fp32",
            "NUM_COLUMNS": 4100,
            "DEPTH": 4096,
            "TILE_ROWS": tiling.tile_rows,
            "TILE_COLUMNS": tiling.tile_columns,
            "TILE_DEPTH": tiling.tile_depth,
            "GROUP_ROW_TILES": matmul.GROUP_ROW_TILES,
        }
        options = {"num_warps": tiling.num_warps, "num_stages": tiling.num_stages}
        compile_kernel(matmul._matmul_kernel, product, dtype, **options)


def compile_decode_plan():
    from pbench.kernels import decode_plan

    plan = {"NUM_ROWS": 8, "NUM_ABREAST": 4, "NUM_FIELDS": 9, "MIN_CHUNK": 4, "TILE_TOKENS": 64, "TILE_SEQUENCES": 1024}
    for has_shared, window in ((True, None), (False, 4096)):
        variant = {"HAS_SHARED": has_shared, "WINDOW": window, "MAY_BE_SETTLED": has_shared, "TILES_AHEAD": 2}
        compile_kernel(decode_plan._decode_plan_kernel, plan | variant)


def compile_rms_norm():
    from pbench.kernels import rms_norm

    for has_residual, num_parts in ((False, None), (True, None), (True, 4)):
        row = {"HAS_RESIDUAL": has_residual, "SIZE": 4096, "TILE_ROWS": 1, "TILE_SIZE": 4096}
        is_early = num_parts is not None
        row |= {"NUM_PARTS": num_parts, "IS_EARLY": is_early, "LETS_EARLY": False}
        row |= {"FETCH_SIZE": 512 if is_early else None}
        compile_kernel(rms_norm._rms_norm_kernel, row, launch_pdl=is_early)


def compile_silu_and_mul():
    from pbench.kernels import silu_and_mul

    compile_kernel(silu_and_mul._silu_and_mul_kernel, {"SIZE": 14336, "TILE_SIZE": 1024})


def compile_update_tables():
    from pbench.kernels import update_tables

    compile_kernel(update_tables._update_tables_kernel, {"TILE_SIZE": 512})


def compile_rotary_write_kv():
    from pbench.kernels import rotary_write_kv

    for is_fp8, has_norm in ((False, False), (False, True), (True, False)):
        plane = {"HALF_DIM": 64, "TILE_HEADS": 16, "TILE_KV_HEADS": 8, "TILE_DIMS": 64}
        rotated = HEADS | plane | {"IS_FP8": is_fp8, "HAS_NORM": has_norm, "IS_EARLY": True}
        compiled = compile_kernel(rotary_write_kv._rotary_write_kv_kernel, rotated, is_fp8=is_fp8)
        check_waits_first(compiled.asm["ptx"])


def compile_hopper_project():
    from pbench.kernels import hopper_project

    swizzled = repr(hopper_project.SWIZZLED.value)
    for num_rows, head_dim, dtype, is_fp8 in (
        (8, 128, "bf16", True),
        (100, 128, "bf16", False),
        (256, 64, "fp16", False),
    ):
        tiling = hopper_project.project_tiling(num_rows)
        projected = HEADS | {
            "HAS_BIAS": dtype == "fp16",
            "HAS_NORM": dtype == "bf16",
            "IS_FP8": is_fp8,
            "HEAD_DIM": head_dim,
            "DEPTH": 1024,
            "TILE_ROWS": tiling.tile_rows,
            "NUM_WEIGHTS_HELD": tiling.weights_held * (128 // head_dim),
            "NUM_ROWS_HELD": tiling.rows_held,
            "NUM_WARPS": tiling.num_warps,
        }
        boxes = {
            name: f"tensordesc<{dtype}[{count}, {hopper_project.BOX_DEPTH.value}],{swizzled}>"
            for name, count in (("x_descriptor", tiling.tile_rows), ("weight_descriptor", head_dim))
        }
        options = {"num_warps": tiling.num_warps, "launch_pdl": True}
        project = hopper_project._hopper_project_kernel
        compiled = compile_gluon_kernel(project, projected, boxes, dtype, is_fp8, **options)
        check_waits_first(compiled.asm["ptx"])


def compile_few_rows_matmul():
    from pbench.kernels import few_rows_matmul

    for num_rows in (16, 32, 64, 256):
        tiling = few_rows_matmul.few_rows_tiling(num_rows)
        for num_parts, has_bias in ((8, False), (1, True)):
            product = {
                "HAS_BIAS": has_bias,
                "NUM_COLUMNS": 1024,
                "DEPTH": 2048,
                "NUM_PARTS": num_parts,
                "TILE_ROWS": tiling.tile_rows,
                "TILE_COLUMNS": tiling.tile_columns,
                "TILE_DEPTH": tiling.tile_depth,
                "IS_TURNED": tiling.tile_rows < few_rows_matmul.MIN_WGMMA_ROWS,
                "IS_EARLY": True,
            }
            tiles = {
                "x_descriptor": (tiling.tile_rows, tiling.tile_depth),
                "weight_descriptor": (tiling.tile_columns, tiling.tile_depth),
            }
            options = {"num_warps": 4, "num_stages": tiling.num_stages, "launch_pdl": True}
            compile_kernel(few_rows_matmul._few_rows_matmul_kernel, product, tiles=tiles, **options)


def compile_gated_matmul():
    from pbench.kernels import gated_matmul

    for num_rows in (16, 32, 64, 256):
        gated = gated_matmul.gated_tiling(num_rows, 3072, 132)
        product = {
            "NUM_COLUMNS": 3072,
            "DEPTH": 1024,
            "TILE_ROWS": gated.tile_rows,
            "TILE_COLUMNS": gated.tile_columns,
            "TILE_DEPTH": gated.tile_depth,
            "IS_EARLY": True,
        }
        tiles = {
            "x_descriptor": (gated.tile_rows, gated.tile_depth),
            "weight_descriptor": (gated.tile_columns, gated.tile_depth),
        }
        options = {"num_warps": 4, "num_stages": gated.num_stages, "launch_pdl": True}
        compile_kernel(gated_matmul._gated_matmul_kernel, product, tiles=tiles, **options)


def compile_hopper_few_rows():
    from pbench.kernels import hopper_few_rows

    columns, turns = hopper_few_rows.SWIZZLED.value, hopper_few_rows.SWIZZLED_TURNS.value
    for is_gated, first_rows, more_rows, num_tiles, dtype in (
        (False, 128, 0, 6, "bf16"),
        (False, 64, 8, 6, "bf16"),
        (True, 16, 0, 8, "fp16"),
    ):
        held = {"IS_GATED": is_gated, "NUM_COLUMNS": 1024, "NUM_TILES": num_tiles}
        held |= {"FIRST_ROWS": first_rows, "MORE_ROWS": more_rows}
        tiles = {
            "first_descriptor": f"tensordesc<{dtype}[{first_rows}, 128],{columns!r}>",
            "more_descriptor": f"tensordesc<{dtype}[{more_rows or first_rows}, 128],{columns!r}>",
            "weight_descriptor": f"tensordesc<{dtype}{[4, 2, 8, 128] if is_gated else [64, 128]},"
            f"{turns if is_gated else columns!r}>",
        }
        held |= {"NUM_TILES_HELD": 4}
        kernel = hopper_few_rows._hopper_few_rows_kernel
        compile_gluon_kernel(kernel, held, tiles, dtype if is_gated else "fp32", num_warps=4)


def compile_most_likely():
    from pbench.kernels import most_likely

    row = {"VOCAB_SIZE": 151936, "TILE_SIZE": 4096, "IS_ALIGNED": True, "LETS_EARLY": True}
    compile_kernel(most_likely._most_likely_kernel, row, num_warps=4)
    merged = {"VOCAB_SIZE": 151936, "NUM_TILES": 38, "MAX_TILES": 64, "IS_EARLY": True}
    compile_kernel(most_likely._merge_kernel, merged, num_warps=1)


def compile_hopper_most_likely():
    from pbench.kernels import hopper_most_likely

    for num_rows, dtype in ((8, "bf16"), (96, "bf16"), (144, "fp16"), (192, "bf16"), (256, "bf16")):
        tiling = hopper_most_likely.next_tiling(num_rows, 151936, 132)
        constants = {"VOCAB_SIZE": 151936, "NUM_DEPTHS": 16, "ROWS": tiling.rows, "MORE_ROWS": tiling.more_rows}
        constants |= {"NUM_PIECES": tiling.num_pieces, "NUM_HELD": tiling.num_held, "NUM_WARPS": tiling.num_warps}
        depth = hopper_most_likely.TILE_DEPTH.value
        boxes = {
            name: f"tensordesc<{dtype}[{count}, {depth}],{hopper_most_likely.SWIZZLED.value!r}>"
            for name, count in (
                ("hidden_descriptor", tiling.rows),
                ("more_descriptor", tiling.more_rows or tiling.rows),
                ("head_descriptor", hopper_most_likely.PIECE.value),
            )
        }
        kernel, options = hopper_most_likely._hopper_most_likely_kernel, {"num_warps": tiling.num_warps}
        compile_gluon_kernel(kernel, constants, boxes, dtype, launch_pdl=True, **options)


if __name__ == "__main__":
    compile_all()
