"""What spectral normalization does elsewhere and here: one table, the tests of each row, and the README's text from it.

`python tests/test_features.py` writes the README's section anew.
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
HEADING = "## Compared with the others"


class Row(NamedTuple):
    """`tests`: "file::function" of each proof."""

    feature: str
    elsewhere: str
    minigrad: str
    tests: tuple[str, ...]


L, F, H, D, P, N, S = (
    f"test_spectral_{name}::test_"
    for name in ("layers", "forms", "half", "degenerate", "properties", "norm", "norm_state")
)
TABLE = (
    Row(
        "gradient",
        "through σ, u and v fixed (most); straight-through (AiDotNet, Keras on TF); wrong (Paddle's op)",
        "exact for u, v fixed by default; all seven conventions by name",
        (
            "test_conventions::test_fact_2_each_meets_its_oracle",
            S + "the_modules_gradient_is_the_conventions",
            P + "any_convention_trains_as_in_numpy",
        ),
    ),
    Row(
        "forms",
        "one or two of: parametrization, hook, wrapper layer, function",
        "function on a module, wrapper layer, pure op: one node, the same bits",
        (F + "three_forms_give_the_same_bits", N + "the_wrapper_computes_what_the_function_does"),
    ),
    Row(
        "iterations",
        "1; ≤ 0 is a ValueError (PyTorch, Paddle)",
        "the same",
        (N + "errors", N + "torch_computes_the_same"),
    ),
    Row(
        "order",
        "u, v (PyTorch, Equinox) or v, u (the paper, Paddle, Chainer, BigGAN)",
        "u, v: σ comes free; the paper's by `order=`",
        (S + "one_step_per_training_forward_and_none_else", "test_spectral::test_power_iteration_is_the_papers"),
    ),
    Row(
        "ε",
        "clamps raw norms, or is added, 1e-12 to 1e-4: small weights come out wrong",
        "clamps relative to σ: f(cW) = f(W), 1e-30 to 1e+30 in float32",
        (
            "test_spectral::test_eps_is_relative_to_sigma",
            D + "powers_of_two_change_no_bit",
            D + "from_the_smallest_norms_to_the_largest_in_float32",
        ),
    ),
    Row(
        "first u, v",
        "random, 15 warm-up sweeps (PyTorch, Equinox) or none",
        "the same 15, or any number; seeded",
        (N + "vectors_are_drawn_reproducibly_and_warmed_up", P + "steps_are_counted_whatever_happens_between"),
    ),
    Row(
        "matrix axis",
        "0; 1 for transposed convolutions; `dim` (PyTorch, Paddle)",
        "the same",
        (L + "training_is_torchs", P + "any_weight_trains_as_in_torch"),
    ),
    Row(
        "1-d weight",
        "W/‖W‖ (PyTorch); an error",
        "W/‖W‖ with its exact derivatives",
        (N + "torch_vectors_have_one_dimension_less", L + "training_is_torchs"),
    ),
    Row(
        "evaluation",
        "stored u, v (PyTorch, Paddle); sweeps all the same (Chainer, Flax, Haiku); the raw weight (Keras)",
        "stored u, v; no step",
        (
            S + "one_step_per_training_forward_and_none_else",
            S + "the_forward_uses_the_stepped_vectors_and_the_read_the_stored",
        ),
    ),
    Row(
        "reading the weight",
        "each read in training steps u and v (PyTorch)",
        "changes nothing; one step per forward call",
        (S + "one_step_per_training_forward_and_none_else", P + "steps_are_counted_whatever_happens_between"),
    ),
    Row(
        "many forwards, one backward",
        "works (PyTorch); train, eval, train crashes (PyTorch's older hook, Paddle)",
        "any mix of train and eval",
        (
            L + "any_mix_of_modes_and_one_backward_is_torchs",
            S + "several_forwards_of_any_mode_and_one_backward",
            P + "any_weight_trains_as_in_torch",
        ),
    ),
    Row(
        "state",
        "u, v saved; lost if lazy (Chainer)",
        "u, v and γ saved",
        (N + "names_of_the_state_dict", L + "a_lazy_layer_loads_the_state_of_an_eager_one"),
    ),
    Row(
        "state-dict names",
        "three layouts: PyTorch's two, Chainer's",
        "writes PyTorch's, `strict=True` there; reads all, and Paddle's",
        (
            "test_interchange::test_a_file_goes_both_ways_and_training_goes_on",
            "test_interchange::test_the_older_hook_goes_on_without_v",
            "test_convert_state::test_the_librarys_own_sequence",
        ),
    ),
    Row(
        "removal",
        "bakes W̄ in, after one more sweep (PyTorch); raw W (Chainer); none (Paddle, Keras)",
        "bakes what the weight reads, no sweep; raw W on request; optimizers go on",
        (
            S + "removal_bakes_what_the_weight_reads",
            S + "the_parameter_stays_the_same_object",
            F + "an_optimizer_made_before_works_after_registration_and_after_removal",
        ),
    ),
    Row(
        "γ and factor",
        "γ₀ = σ₁ and a factor (Chainer); a factor (deel-torchlip)",
        "both; γ is a Parameter",
        (L + "gamma_and_factor_in_every_convention", L + "gamma_of_a_vector_and_its_removal"),
    ),
    Row(
        "lazy layers",
        "Chainer; errors",
        "lazy Linear and Conv: vectors with the first batch",
        (L + "a_lazy_layer_is_torchs_once_it_has_seen_a_batch", S + "lazy_weights"),
    ),
    Row(
        "which layers",
        "Linear, Embedding, (transposed) convolutions, recurrent weights (PyTorch, Chainer)",
        "all of these, cells, groups, any Parameter of any Module, shared ones",
        (L + "training_is_torchs", N + "torch_computes_the_same", L + "layers_by_differences_with_u_and_v_frozen"),
    ),
    Row(
        "registering twice",
        "RuntimeError (PyTorch's older hook, Paddle)",
        "RuntimeError that names module and parameter",
        (N + "errors", N + "the_wrapper_has_the_names_and_errors_of_the_function"),
    ),
    Row(
        "wrong name or dim",
        "ValueError, IndexError",
        "the same, naming what there is",
        (N + "errors", N + "where_chooses_in_a_whole_model"),
    ),
    Row(
        "removal by name",
        "Chainer",
        "`remove_spectral_norm(module, name)`",
        (S + "recurrent_weights_by_name", N + "errors"),
    ),
    Row(
        "zero weight",
        "NaN (PyTorch, Paddle, Haiku, Equinox); 0 (Keras)",
        "W̄ = 0, gradient 0, never NaN",
        (D + "a_zero_weight_through_its_whole_life", D + "all_of_it_is_defined_and_known"),
    ),
    Row(
        "double backward",
        "PyTorch",
        "any order; HVP(W) = −∂L/∂W",
        (
            S + "double_backward_through_a_module",
            "test_spectral_facts::test_fact_5_the_hessian_vector_product",
            "test_spectral::test_gradients_of_three_orders_by_differences",
        ),
    ),
    Row(
        "deepcopy, pickle",
        "deepcopy (PyTorch); breaks after a forward (its older hook)",
        "both, at any time",
        (S + "copies_at_any_time", F + "copies_between_forward_and_backward"),
    ),
    Row(
        "error inside forward",
        "the weight stays swapped (Chainer)",
        "nothing has stepped",
        (S + "an_exception_in_forward_steps_nothing", F + "a_forward_that_raised_has_stepped_no_weight_of_the_module"),
    ),
    Row(
        "half precision",
        "runs (PyTorch)",
        "float16 weights; u, v, σ and arithmetic in float32",
        (H + "float16_is_close_to_its_float64_reference", H + "float16_in_every_convention"),
    ),
    Row(
        "GPU",
        "PyTorch, Paddle, Chainer; AiDotNet scales on the CPU",
        "all of it, no host read in a step; so far on CUDA's simulator only",
        ("test_cuda_spectral::test_launches_of_a_step", "test_device_training::test_every_convention_trains"),
    ),
    Row(
        "export",
        "a graph with W̄ baked in (AiDotNet)",
        "ONNX, W̄ baked in",
        ("test_export::test_every_convention_is_baked", "test_export_ops::test_layer"),
    ),
    Row(
        "serialization",
        "u, v saved for an exact restart (AiDotNet)",
        "safetensors; a whole training goes on to the bit",
        (
            "test_resume::test_training_goes_on_to_the_bit",
            "test_killed::test_killed_200_times_the_newest_checkpoint_loads",
            "test_optim::test_saved_state_continues_exactly",
            "test_interchange::test_a_file_goes_both_ways_and_training_goes_on",
            "test_checkpoint::test_every_dtype_shape_and_stride",
        ),
    ),
    Row(
        "GPU optimizer",
        "AiDotNet",
        "one launch for all parameters; so far on CUDA's simulator only",
        ("test_cuda_spectral::test_a_step_is_one_launch_and_the_cpus",),
    ),
    Row(
        "whole models",
        "a regex (Haiku); every weight (Flax)",
        "`where=` chooses by path and module",
        (
            N + "where_chooses_in_a_whole_model",
            L + "a_model_with_where_is_registration_one_by_one",
            L + "where_asks_for_any_name",
        ),
    ),
    Row(
        "several singular values",
        "BigGAN",
        "the k largest, of matrices and convolutions",
        (
            "test_spectral::test_singular_values",
            "test_convolution_spectra::test_operator_norm_and_top_k_of_zero_padding",
        ),
    ),
    Row(
        "norm of a convolution",
        "a bound (deel-torchlip); asked for elsewhere",
        "exact if circular; by power iteration for any padding and stride; as σ of the node",
        (
            "test_operator_norm::test_gradient_and_hessian_are_those_of_the_oracle_at_unconverged_vectors",
            "test_convolution_spectra::test_circular_spectra_are_exact",
        ),
    ),
    Row(
        "σ at hand",
        "logged (Flax, Haiku, BigGAN)",
        "σ̂, σ₁, gap and λ per layer of any model",
        ("test_diagnosis::test_the_numbers_of_every_kind_of_weight",),
    ),
    Row(
        "a gradient check",
        "none at unconverged u, v with random upstream gradients",
        "the test suite and `minigrad gradcheck`",
        (
            "test_cli::test_gradcheck_passes_over_everything",
            "test_gradcheck::test_the_spectral_node_with_sigma_in_the_graph_passes_both",
            L + "layers_by_differences_with_u_and_v_frozen",
        ),
    ),
)  # fmt: skip


def section() -> str:
    """The README's section: a paragraph, the table, and nothing that is not in `TABLE`."""
    lines = [
        HEADING,
        "",
        "What spectral normalization does in other libraries, what it does here, and where the tests are that fail if",
        "it does not; [test_features.py](tests/test_features.py) names them one by one.",
        "",
        "| feature | elsewhere | minigrad | tests |",
        "|---|---|---|---|",
    ]
    for row in TABLE:
        files = dict.fromkeys(test.split("::")[0] for test in row.tests)
        short = {file: file.removeprefix("test_").removeprefix("spectral_").replace("_", " ") for file in files}
        links = [f"[{short[file]}](tests/{file}.py)" for file in files]
        lines.append(f"| {row.feature} | {row.elsewhere} | {row.minigrad} | {', '.join(links)} |")
    return "\n".join(lines) + "\n"


def with_section(text: str) -> str:
    """The README with the section as it should be."""
    before, rest = text.split(HEADING)
    return before + section() + "\n## " + rest.split("\n## ", 1)[1]


def functions(file: str) -> set[str]:
    body = ast.parse((ROOT / "tests" / f"{file}.py").read_text()).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef)}


def test_every_row_has_its_tests():
    for row in TABLE:
        assert row.tests, row.feature
        for test in row.tests:
            file, _, function = test.partition("::")
            assert function in functions(file), f"{row.feature}: {test}"
    assert len({row.feature for row in TABLE}) == len(TABLE)


def test_the_readme_has_the_table():
    text = README.read_text()
    for row in TABLE:
        assert f"| {row.feature} | {row.elsewhere} | {row.minigrad} |" in text
    assert text == with_section(text), "run python tests/test_features.py"


def test_a_cell_is_short_enough_to_read():
    for row in TABLE:
        assert not any("|" in cell or len(cell) > 100 for cell in row[:3]), row.feature
        assert max(map(len, re.split(r"[ /]", " ".join(row[:3])))) <= 32, row.feature


if __name__ == "__main__":
    README.write_text(with_section(README.read_text()))
