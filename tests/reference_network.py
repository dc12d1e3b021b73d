"""The network in NumPy and double precision, written from its formulas, to compare with.

Sources: Leung & Bovy (2023, arXiv 2308.10944) and Koblischke & Bovy (2024, arXiv 2411.04750).
Shapes: N stars, L tokens, Q requests, P pixels per token, D dimensions.
"""

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[float])


def gelu(x):
    """``x Phi(x)`` with the cumulative normal distribution Phi."""
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def softmax(x):
    """Softmax over the last axis."""
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def encode_wavelength(wavelength, dim, wavelength_range):
    """``sin, cos (1000 v d_i)`` (..., D) with ``d_i = 10000^(-2i / D)``; zeros for wavelength 0.

    The angles are rounded to single precision as in the published code: near 1000 rad that changes
    the sines by up to 4e-4.
    """
    single = np.float32
    low, high = map(single, wavelength_range)
    wavelength = np.asarray(wavelength, dtype=single)
    position = single(1000) * ((wavelength - low) / (high - low))
    even = np.arange(0, dim, 2, dtype=single)
    angle = (position[..., None] * np.exp(even * single(-math.log(10000) / dim))).astype(float)
    encoding = np.empty((*wavelength.shape, dim))
    encoding[..., 0::2], encoding[..., 1::2] = np.sin(angle), np.cos(angle)
    return encoding * (wavelength != 0)[..., None]


class ReferenceNetwork:
    """The whole network: its weights by their published names, `embed_map` (V + 1,), sizes."""

    def __init__(self, weights, embed_map, config):
        self.weights = {name: np.asarray(x, dtype=np.float64) for name, x in weights.items()}
        self.embed_map, self.config = np.asarray(embed_map), config

    @classmethod
    def of(cls, model):
        """The network of a `StellarPerceptron`."""
        weights = {name: x.cpu().numpy() for name, x in model.torch_model.state_dict().items()}
        return cls(weights, model.embed_map, model.config)

    def linear(self, name, x):
        """``W x + b``."""
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def layer_norm(self, name, x):
        """Layer normalization over the last axis."""
        variance = x.var(axis=-1, keepdims=True)
        x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(variance + 1e-5)
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def embed(self, ids, values, wavelengths):
        """``gelu(sum_i v_i (E x_i + V) + B) + PE(w)`` (N, L, D); no B with one pixel per token."""
        rows = self.embed_map[ids]  # (L, P) or (N, L, P)
        scale, shift = (self.weights[f"embedding_layer.{x}"] for x in ("embeddings", "bias"))
        one, flux = values.shape[-1] == 1, np.nan_to_num(values, nan=0.0)[..., None]
        # A token of one pixel has its V even if the pixel is missing; it is never attended to.
        valid = np.ones_like(flux) if one else ~np.isnan(values)[..., None]
        total = (valid * (scale[rows] * flux + shift[rows])).sum(axis=-2)
        if not one:
            total = total + self.weights["embedding_layer.bin_bias"]
        embedded = gelu(total)
        if wavelengths is None:
            return embedded
        config = self.config
        return embedded + encode_wavelength(
            wavelengths, config.embedding_dim, config.wavelength_range
        )

    def attention(self, name, heads, query, context, attend):
        """Attention with one more key and value, which are learned and always attended to."""
        weight, bias = (self.weights[f"{name}.in_proj_{x}"] for x in ("weight", "bias"))
        stars, dim = len(query), query.shape[-1]
        q, k, v = (
            x @ weight[i * dim : (i + 1) * dim].T + bias[i * dim : (i + 1) * dim]
            for i, x in enumerate((query, context, context))
        )
        k, v = (
            np.concatenate(
                [x, np.broadcast_to(self.weights[f"{name}.{learned}"], (stars, 1, dim))], 1
            )
            for x, learned in ((k, "bias_k"), (v, "bias_v"))
        )
        attend = np.concatenate([attend, np.ones((stars, 1), dtype=bool)], axis=1)
        answer = np.empty_like(q)
        for part in np.split(np.arange(dim), heads):
            scores = q[..., part] @ k[..., part].swapaxes(1, 2) / math.sqrt(len(part))
            answer[..., part] = softmax(np.where(attend[:, None], scores, -np.inf)) @ v[..., part]
        return self.linear(f"{name}.out_proj", answer)

    def block(self, name, heads, query, context, attend):
        """Post-norm Transformer block."""
        attended = self.attention(f"{name}.attention", heads, query, context, attend)
        x = self.layer_norm(f"{name}.layernorm_1", query + attended)
        feed_forward = self.linear(f"{name}.dense_2", gelu(self.linear(f"{name}.dense_1", x)))
        return self.layer_norm(f"{name}.layernorm_2", x + feed_forward)

    def __call__(self, ids, values, wavelengths, request_ids, nan_policy="mask"):
        """Standardized value and log-variance (N, Q).

        Parameters
        ----------
        ids
            (L, P) or (N, L, P) tokens, 0 for none.
        values
            (N, L, P) standardized, NaN where missing.
        wavelengths
            (L,) or (N, L) [Angstrom], 0 for none; None without wavelengths.
        request_ids
            (Q,) or (N, Q).
        nan_policy
            "mask": tokens without a value are not attended to; "attend": they are, as zeros.
        """
        config = self.config
        x = self.embed(ids, values, wavelengths)
        attend = (~np.isnan(values) & (ids != 0)).any(axis=-1)
        if nan_policy == "attend":
            x = x * attend[..., None]
            attend = np.broadcast_to((ids != 0).any(axis=-1), attend.shape)
        for i in (1, 2):
            name = f"torch_encoder.encoder_transformer_block_{i}"
            x = self.block(name, config.encoder_head_num // i, x, x, attend)
        rows = self.embed_map[np.broadcast_to(request_ids, (len(x), np.shape(request_ids)[-1]))]
        answer = self.weights["embedding_layer.embeddings"][rows]
        for i in range(3):
            name = f"torch_decoder.decoder_transformer_block_{i + 1}"
            answer = self.block(name, config.decoder_head_num // 2**i, answer, x, attend)
        for i in range(3, 7):
            answer = gelu(self.linear(f"torch_decoder.decoder_dense_{i}", answer))
        value = self.linear("torch_decoder.decoder_out", answer)
        return value[..., 0], self.linear("torch_decoder.decoder_logvar_out", answer)[..., 0]
