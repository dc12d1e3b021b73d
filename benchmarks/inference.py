"""Inference on many pixels: `predict` beside the published manner and the matrix-product floor.

The published manner takes one star at a time, looks every token up by name, perceives patch by
patch with batch 1, computes all attention weights, and asks for one label at a time.
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.common import large_products, measure_in_turn, record
from stellarperceptron import StellarPerceptron
from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH
from stellarperceptron.instruments import APOGEE
from stellarperceptron.labels import PUBLISHED_LABELS
from stellarperceptron.layers import Tokens
from stellarperceptron.network.block import TransformerBlock
from stellarperceptron.network.patches import split_into_patches
from stellarperceptron.utils.arguments import output_file

LABELS = list(PUBLISHED_LABELS)


def paper_model(device: str | torch.device = "cpu", **config) -> StellarPerceptron:
    """The published sizes, or others, with fresh weights, standardized as if on real spectra."""
    names = [f"syn_apogee{i}" for i in range(len(APOGEE_WAVELENGTH))]
    model = StellarPerceptron(
        [*names, *LABELS], embed_map=dict.fromkeys(names, names[0]), device=device, seed=0, **config
    )
    random = np.random.default_rng(0)
    spectra = 0.95 + 0.05 * random.normal(size=(20, len(names)))
    model.fit_standardization(np.hstack([spectra, random.normal(size=(20, 5))]), model.vocabs)
    return model


def plain(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """PyTorch's linear layer, not the package's faster one."""
    return F.linear(x, layer.weight, layer.bias)


def plain_dropout(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """PyTorch's dropout at a module's rate, not the package's faster one."""
    return F.dropout(x, module.dropout.p, module.training)


def published_block(block: TransformerBlock, query, context, padding):
    """A Transformer block through PyTorch's module, with averaged attention weights."""
    attended, weights = block.attention(
        query, context, context, key_padding_mask=padding, need_weights=True
    )
    x = block.layernorm_1(query + plain_dropout(block, attended))
    dense = plain(block.dense_2, F.gelu(plain(block.dense_1, x)))
    return block.layernorm_2(x + plain_dropout(block, dense)), weights


@torch.inference_mode()
def published_manner(model: StellarPerceptron, spectra: np.ndarray, wavelengths: np.ndarray):
    """Predict star by star, patch by patch, label by label."""
    network, context = model.torch_model, model.config.context_length
    encoder, decoder, layer = network.torch_encoder, network.torch_decoder, network.embedding_layer
    names = APOGEE.pixel_names(wavelengths)
    all_tokens = model.tokenize(names)
    patches = split_into_patches(
        all_tokens, wavelengths, model.positions[all_tokens], layer, context
    )
    token_of = {name: token + 1 for token, name in enumerate(model.vocabs)}
    answers = np.zeros((len(spectra), 2 * len(LABELS)))
    for star, spectrum in enumerate(spectra):
        for patch in patches:
            pixels = patch.pixels[:, 0].numpy()
            tokens = np.array([token_of[name] for name in names[pixels]])
            flux = model.padding(model.standardizer.standardize(spectrum[None, pixels], tokens))
            tokens = torch.from_numpy(model.padding(tokens)[None])
            padded_wavelengths = torch.from_numpy(model.padding(wavelengths[pixels])[None])
            padding = tokens == 0
            encoding = layer.encode_wavelength(padded_wavelengths)
            x = layer(Tokens(tokens[..., None], torch.from_numpy(flux)[..., None], encoding))
            for block in (encoder.encoder_transformer_block_1, encoder.encoder_transformer_block_2):
                x, _ = published_block(block, x, x, padding)
            for i, label in enumerate(LABELS):
                q = layer.request(torch.tensor([[token_of[label]]]))
                for j in range(3):
                    block = decoder.get_submodule(f"decoder_transformer_block_{j + 1}")
                    q, _ = published_block(block, q, x, padding)
                for j in range(3, 7):
                    q = F.gelu(plain(decoder.get_submodule(f"decoder_dense_{j}"), q))
                logvar = plain(decoder.decoder_logvar_out, q)
                answers[star, i] += plain(decoder.decoder_out, q).item() / len(patches)
                answers[star, i + 5] += (0.5 * logvar).exp().item() / len(patches)
    label_tokens = model.tokenize(LABELS)
    return np.hstack(
        [
            model.standardizer.inverse_standardize(answers[:, :5], label_tokens),
            model.standardizer.inverse_standardize_error(answers[:, 5:], label_tokens),
        ]
    )


def measure(arguments) -> dict:
    """Compare the answers of both manners, then time them in turn."""
    model = paper_model()
    wavelengths = APOGEE_WAVELENGTH[: arguments.pixels]
    random = np.random.default_rng(1)
    spectra = 0.95 + 0.05 * random.normal(size=(arguments.stars, arguments.pixels))
    spectra[random.random(spectra.shape) < 0.04] = np.nan  # bad pixels of real spectra

    # The reference attends to bad pixels; compare the answers on spectra that have none.
    clean = np.nan_to_num(spectra[:1], nan=0.95)
    exact = model.predict(clean, wavelengths, LABELS, progress=False)
    exact = exact.drop(columns="flags").to_numpy()
    difference = np.abs(published_manner(model, clean, wavelengths) - exact).max()
    if not difference < 1e-4:
        raise AssertionError(f"the two manners differ by {difference}")

    filled = np.nan_to_num(spectra, nan=0.95)
    products, product_flop = large_products()
    times = measure_in_turn(
        {
            **products,
            "ours": lambda: model.predict(spectra, wavelengths, LABELS, progress=False),
            "published manner": lambda: published_manner(model, filled, wavelengths),
        },
        arguments.repeats,
    )
    rates = {name: product_flop / times[name]["cpu_s"] for name in products}
    patches = -(-arguments.pixels // model.config.context_length)
    flop = patches * model.flops_per_star(labels=len(LABELS))
    # Equal patches are shorter than the full contexts that the floor assumes.
    equal = patches * model.flops_per_star(-(-arguments.pixels // patches), len(LABELS))
    per_star = {
        name: {clock: value / arguments.stars for clock, value in times[name].items()}
        for name in ("ours", "published manner")
    }
    return {
        "stars": arguments.stars,
        "pixels": arguments.pixels,
        "labels": len(LABELS),
        "repeats": arguments.repeats,
        "seconds_per_star": per_star,
        "gflop_per_star": flop / 1e9,
        "gflop_per_star_in_equal_patches": equal / 1e9,
        "gflops": {name: rate / 1e9 for name, rate in rates.items()},
        "floor_s_per_star": {name: flop / rate for name, rate in rates.items()},
        "share_of_floor": {
            name: flop / rate / per_star["ours"]["cpu_s"] for name, rate in rates.items()
        },
        "ratio_cpu": per_star["published manner"]["cpu_s"] / per_star["ours"]["cpu_s"],
        "ratio_wall": per_star["published manner"]["wall_s"] / per_star["ours"]["wall_s"],
        "largest_difference": float(difference),
    }


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--stars", type=int, default=8, help="stars in a repeat")
    parser.add_argument("--pixels", type=int, default=3757, help="pixels of a spectrum")
    parser.add_argument("--repeats", type=int, default=5, help="counted repeats")
    parser.add_argument("--threads", type=int, default=1, help="threads of the process")
    parser.add_argument(
        "--output", type=output_file, help="JSON file; default: benchmarks/results/"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    results = measure(arguments)
    per_star, rates = results["seconds_per_star"], results["gflops"]
    print(
        f"ours {per_star['ours']['cpu_s']:.3f} s/star, published manner "
        f"{per_star['published manner']['cpu_s']:.3f} s/star: {results['ratio_cpu']:.1f} times "
        f"faster (wall: {results['ratio_wall']:.1f})"
    )
    for name, rate in rates.items():
        print(
            f"floor at the rate of the {name}, {rate:.0f} GFLOP/s: "
            f"{results['floor_s_per_star'][name]:.3f} s/star, "
            f"of which {100 * results['share_of_floor'][name]:.0f} % are reached"
        )
    print("recorded in", record("inference", results, arguments.output))


if __name__ == "__main__":
    main()
