"""Training: a step, the batches of an epoch, and preparation, beside the published manner.

The published manner trains through PyTorch's attention module with all attention weights, plain
linear layers and one label a star; it makes the batches of an epoch on the CPU by deep copies, one
shuffle a star and argsorts of whole rows. On a GPU, steps are measured in bfloat16 at batch 64 and
at the largest batch given, with the time of the published 325 epochs of 92,472 stars.
"""

import argparse
import contextlib
import copy
import time

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.common import OwnProcess, large_products, measure_in_turn, record
from benchmarks.inference import LABELS, paper_model, plain, plain_dropout, published_block
from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH
from stellarperceptron.network.kernels.graphs import CapturedGradients
from stellarperceptron.network.kernels.memory import freed_memory_kept
from stellarperceptron.nn_utils import robust_mean_squared_error
from stellarperceptron.training.batches import TrainingGenerator
from stellarperceptron.training.loop import PEAK_FLOPS
from stellarperceptron.training.prepare import fit_standardization, prepare_training_data
from stellarperceptron.training.stars.labelled import Stars
from stellarperceptron.utils.arguments import output_file

EPOCHS, STARS = 325, 92_472


def random_survey(stars: int) -> tuple[np.ndarray, np.ndarray]:
    """Fluxes (N, 7514), 4 % of them bad, and labels (N, 5), 1 % of them missing."""
    random = np.random.default_rng(0)
    flux = random.normal(0.95, 0.05, size=(stars, len(APOGEE_WAVELENGTH))).astype(np.float32)
    flux[random.random(flux.shape, dtype=np.float32) < 0.04] = np.nan
    labels = random.normal(size=(stars, len(LABELS)))
    labels[random.random(labels.shape) < 0.01] = np.nan
    return flux, labels


def prepare(model, flux, labels):
    """Tokenize, standardize and place all stars."""
    names = [f"syn_apogee{i}" for i in range(flux.shape[1])]
    errors = np.full_like(labels, 0.01)
    stars = Stars(flux.__getitem__, names, APOGEE_WAVELENGTH, labels, errors, LABELS)
    fit_standardization(model, stars, model.device)
    return prepare_training_data(model, stars)


def step_of(model, data, batch, optimizer, precision=None, cuda_graphs=False):
    """One training step of ours, as `training` takes it, as a function."""
    network = model.torch_model.train()

    def gradients(batch):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(model.device.type, precision, enabled=precision is not None):
            value, logvar = network(batch.tokens._replace(complete=True), batch.request_ids)
        loss = robust_mean_squared_error(
            batch.labels, value.float(), logvar.float(), batch.label_errors
        )
        loss.backward()
        return loss.detach()

    if cuda_graphs:
        gradients = CapturedGradients(gradients, network.parameters())

    def step():
        gradients(batch)
        optimizer.step()

    return step


def published_step_of(model, data, batch, optimizer):
    """One training step in the published manner, as a function."""
    network = model.torch_model.train()
    encoder, decoder = network.torch_encoder, network.torch_decoder
    ids = batch.tokens.ids[..., 0]  # pixels are the first names, in their order
    wavelengths = torch.tensor(APOGEE_WAVELENGTH, device=model.device)[ids - 1]

    def step():
        layer = network.embedding_layer
        x = layer(batch.tokens._replace(encoding=layer.encode_wavelength(wavelengths)))
        padding = ids == 0
        for block in (encoder.encoder_transformer_block_1, encoder.encoder_transformer_block_2):
            x, _ = published_block(block, x, x, padding)
        q = layer.request(batch.request_ids)
        for i in range(3):
            block = decoder.get_submodule(f"decoder_transformer_block_{i + 1}")
            q, _ = published_block(block, q, x, padding)
        for i in range(3, 7):
            dense = F.gelu(plain(decoder.get_submodule(f"decoder_dense_{i}"), q))
            q = plain_dropout(decoder, dense)
        value = plain(decoder.decoder_out, q)[..., 0]
        logvar = plain(decoder.decoder_logvar_out, q)[..., 0]
        robust_mean_squared_error(batch.labels, value, logvar, batch.label_errors).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def prepared_step(stack: contextlib.ExitStack, stars: int, ours: bool):
    """A step of some stars, in a process that holds nothing else; see `step_of`."""
    flux, labels = random_survey(stars)
    model = paper_model()
    data = prepare(model, flux, labels)
    batch = next(iter(TrainingGenerator(data, np.arange(stars), stars, 512)))
    optimizer = torch.optim.AdamW(model.torch_model.parameters(), lr=1e-4, fused=ours or None)
    if not ours:
        return published_step_of(model, data, batch, optimizer)
    stack.enter_context(freed_memory_kept())  # as the training loop does
    return step_of(model, data, batch, optimizer)


def published_batches(values, tokens, wavelengths, errors, labels, context):
    """Make the samples of an epoch as the published code does."""
    values, tokens, wavelengths, errors = map(copy.deepcopy, (values, tokens, wavelengths, errors))
    random = np.random.default_rng(0)
    chosen = np.empty(len(values), dtype=int)
    for star, row in enumerate(labels):
        order = random.permutation(len(row))
        chosen[star] = order[np.flatnonzero(~np.isnan(row[order]))[0]]
    # One permutation of the pixels for all stars, then valid pixels first.
    shuffle = random.permutation(values.shape[1])
    arrays = [array[:, shuffle] for array in (values, tokens, wavelengths, errors)]
    order = np.argsort(np.isnan(arrays[0]), axis=1, kind="stable")
    return [np.take_along_axis(array, order, axis=1)[:, :context] for array in arrays], chosen


def prepared_batches(stack: contextlib.ExitStack, stars: int, ours: bool):
    """The batches of an epoch of random stars, in a process that holds nothing else."""
    flux, labels = random_survey(stars)
    data = prepare(paper_model(), flux, labels)
    if ours:
        stack.enter_context(freed_memory_kept())
        generator = TrainingGenerator(data, np.arange(stars), 64, 512)
        return lambda: sum(len(batch.stars) for batch in generator)
    values = data.standardized(data.values).numpy()
    tokens = np.tile(np.arange(1, flux.shape[1] + 1), (stars, 1))
    wavelengths = np.tile(APOGEE_WAVELENGTH, (stars, 1))
    return lambda: published_batches(values, tokens, wavelengths, values, labels, 512)


def measure_cpu(arguments) -> dict:
    """Step, batches and preparation on one thread."""
    flux, labels = random_survey(arguments.stars)
    model = paper_model()
    start = time.process_time()
    prepare(model, flux, labels)
    prepared = time.process_time() - start
    fresh = paper_model()
    fresh._input_standardized[:] = False
    start = time.process_time()
    prepare(fresh, flux, labels)
    fitted = time.process_time() - start
    products, product_flop = large_products()
    steps = measure_in_turn(
        {
            **products,
            "our step": OwnProcess(prepared_step, arguments.batch_size, True),
            "published step": OwnProcess(prepared_step, arguments.batch_size, False),
        },
        arguments.repeats,
    )
    batches = measure_in_turn(
        {
            "our batches": OwnProcess(prepared_batches, arguments.stars, True),
            "published batches": OwnProcess(prepared_batches, arguments.stars, False),
        },
        arguments.repeats,
    )
    flop = arguments.batch_size * model.flops_per_star(training=True)
    rates = {name: product_flop / steps[name]["cpu_s"] for name in products}
    own, published = steps["our step"]["cpu_s"], steps["published step"]["cpu_s"]
    return {
        "stars": arguments.stars,
        "repeats": arguments.repeats,
        "seconds": {**steps, **batches},
        "gflop_per_step": flop / 1e9,
        "gflops": {name: rate / 1e9 for name, rate in rates.items()},
        "step_ratio": published / own,
        "step_share_of_floor": {name: flop / rate / own for name, rate in rates.items()},
        "batches_ratio": batches["published batches"]["cpu_s"] / batches["our batches"]["cpu_s"],
        "batches_ms_per_star": 1e3 * batches["our batches"]["cpu_s"] / arguments.stars,
        "preparation_s": prepared,
        "preparation_with_fitted_standardization_s": fitted,
    }


def measure_gpu(arguments) -> dict:
    """Steps in bfloat16 with fresh batches, compiled, at batch 64 and larger."""
    device = torch.device("cuda")
    name = torch.cuda.get_device_name()
    peak = next((rate for key, rate in PEAK_FLOPS.items() if key in name), float("nan"))
    flux, labels = random_survey(arguments.stars)
    results = {}
    for batch_size in arguments.batch_sizes:
        model = paper_model(device)
        data = prepare(model, flux, labels)
        optimizer = torch.optim.AdamW(model.torch_model.parameters(), lr=1e-4, fused=True)
        if arguments.compile:
            model.torch_model.compile()
        generator = TrainingGenerator(data, np.arange(arguments.stars), batch_size, 512)

        def epoch(generator=generator, model=model, data=data, optimizer=optimizer):
            for batch in generator:
                step_of(model, data, batch, optimizer, torch.bfloat16)()
            torch.cuda.synchronize()

        wall = measure_in_turn({"epoch": epoch}, arguments.repeats)["epoch"]["wall_s"]
        rate = arguments.stars / wall
        flops = rate * model.flops_per_star(training=True)
        results[f"batch {batch_size}"] = {
            "stars_per_s": rate,
            "tflops": flops / 1e12,
            "mfu": flops / peak,
            "hours_for_325_epochs_of_92472_stars": EPOCHS * STARS / rate / 3600,
            "memory_gb": torch.cuda.max_memory_allocated() / 1e9,
        }
        torch.cuda.reset_peak_memory_stats()
    return results


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="what to measure")
    parser.add_argument("--stars", type=int, default=2000, help="stars of the random survey")
    parser.add_argument("--repeats", type=int, default=3, help="counted repeats")
    parser.add_argument("--threads", type=int, default=1, help="threads of the process")
    parser.add_argument("--batch-size", type=int, default=64, help="of a step on the CPU")
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[64, 1024, 2048], help="on a GPU"
    )
    parser.add_argument("--compile", action="store_true", help="on a GPU: torch.compile")
    parser.add_argument(
        "--output", type=output_file, help="JSON file; default: benchmarks/results/"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.device == "cuda":
        results = measure_gpu(arguments)
    else:
        results = measure_cpu(arguments)
        own, published = (results["seconds"][k]["cpu_s"] for k in ("our step", "published step"))
        print(
            f"step of {arguments.batch_size} stars {own:.2f} s, published {published:.2f} s: "
            f"{results['step_ratio']:.1f} times faster; share of the floor "
            + ", ".join(f"{100 * v:.0f} % ({k})" for k, v in results["step_share_of_floor"].items())
        )
        print(
            f"batches {results['batches_ms_per_star']:.3f} ms a star, "
            f"{results['batches_ratio']:.0f} times faster than in the published manner; "
            f"preparation of {arguments.stars} stars {results['preparation_s']:.1f} s, with "
            f"medians to fit {results['preparation_with_fitted_standardization_s']:.1f} s"
        )
    print("recorded in", record("training", results, arguments.output))


if __name__ == "__main__":
    main()
