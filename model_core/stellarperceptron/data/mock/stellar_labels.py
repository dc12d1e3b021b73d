"""The labels of a spectrum, their usual values, and the coordinates in which spectra are smooth."""

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = [
    "ALPHA_ELEMENTS",
    "CARBON_LIMIT",
    "LABELS",
    "LEAST_MICROTURBULENCE",
    "microturbulence",
    "standard_labels",
    "to_inputs",
]

ALPHA_ELEMENTS = ("SI_FE", "S_FE", "CA_FE", "TI_FE")  # which follow O and Mg where nothing is said
LEAST_MICROTURBULENCE = 0.3  # of the grids [km/s]: the usual one falls below it from logg 4.95 up
CARBON_LIMIT = 0.15  # the grids' largest [C/O]: above it stars are carbon stars, another chemistry

# TEFF [K], LOGG [log10 cm/s2], VMICRO [km/s], FE_H and X_FE [dex, scale of Grevesse, Asplund &
# Sauval 2007]. The model atmosphere's [alpha/M] is the mean of O_FE and MG_FE.
LABELS = (
    *("TEFF", "LOGG", "FE_H", "VMICRO", "C_FE", "N_FE", "O_FE", "NA_FE", "MG_FE"),
    *("AL_FE", "SI_FE", "S_FE", "K_FE", "CA_FE", "TI_FE", "V_FE", "CR_FE", "MN_FE", "CO_FE"),
    "NI_FE",
)


def microturbulence(logg: Tensor) -> Tensor:
    """
    Microturbulence that APOGEE's pipeline gives a star [km/s].

    log10 v = 0.226 - 0.0228 logg + 0.0297 logg^2 - 0.0113 logg^3 (Holtzman et al. 2018, AJ 156,
    125), with the gravity held within 0 and 5, where the relation was measured.
    """
    g = torch.as_tensor(logg).clamp(0.0, 5.0)
    return 10.0 ** (0.226 - 0.0228 * g + 0.0297 * g**2 - 0.0113 * g**3)


def to_inputs(labels: Tensor) -> Tensor:
    """
    Labels (N, 20) in the coordinates in which spectra vary most smoothly (N, 20).

    Excitation and ionisation go with 5040 K / Teff; microturbulence with the logarithm of its
    ratio to the usual one. Si, S, Ca and Ti are counted from the alpha abundance of the atmosphere
    and carbon from oxygen, as CO binds the rarer of the two. Lines weaken with metallicity, and
    with them what a change of [X/Fe] does: by 10^(0.2 [Fe/H]). (These choices were made by held-out
    error and by the responses to single labels.)
    """
    column = dict(zip(LABELS, labels.T, strict=True))
    alpha = 0.5 * (column["O_FE"] + column["MG_FE"])
    weakening = 10.0 ** (0.2 * column["FE_H"])
    reference = dict.fromkeys(ALPHA_ELEMENTS, alpha) | {"C_FE": column["O_FE"]}
    x = {
        name: (value - reference.get(name, 0.0)) * weakening
        for name, value in column.items()
        if name.endswith("_FE")
    }
    x["TEFF"], x["LOGG"], x["FE_H"] = 5040.0 / column["TEFF"], column["LOGG"], column["FE_H"]
    x["VMICRO"] = torch.log10(column["VMICRO"] / microturbulence(column["LOGG"]))
    return torch.stack([x[name] for name in LABELS], dim=1)


def standard_labels(labels: Mapping[str, object], device: torch.device | str = "cpu") -> Tensor:
    """
    All 20 labels (N, 20), float64, from the ones that are given.

    Missing labels take their usual values: microturbulence by `microturbulence` but at least
    `LEAST_MICROTURBULENCE`, O or Mg that of the other, Si, S, Ca and Ti the mean of both, carbon
    solar but at most [C/O] = `CARBON_LIMIT`, every other abundance solar. TEFF, LOGG and FE_H have
    no usual value.
    """
    unknown = sorted(set(labels) - set(LABELS))
    if unknown:
        raise ValueError(f"unknown labels {unknown}; the emulator knows {list(LABELS)}")
    missing = [name for name in ("TEFF", "LOGG", "FE_H") if name not in labels]
    if missing:
        raise ValueError(f"labels {missing} are needed")
    as_tensor = {
        k: torch.atleast_1d(torch.as_tensor(v, dtype=torch.float64, device=device))
        for k, v in labels.items()
    }
    values = dict(zip(as_tensor, torch.broadcast_tensors(*as_tensor.values()), strict=True))
    zero = torch.zeros_like(values["TEFF"])
    usual = microturbulence(values["LOGG"]).clamp(min=LEAST_MICROTURBULENCE)
    values.setdefault("VMICRO", usual)
    oxygen = values.setdefault("O_FE", values.get("MG_FE", zero))
    alpha = 0.5 * (oxygen + values.setdefault("MG_FE", oxygen))
    values.setdefault("C_FE", (oxygen + CARBON_LIMIT).clamp(max=0.0))
    for name in ALPHA_ELEMENTS:
        values.setdefault(name, alpha)
    return torch.stack([values.get(name, zero) for name in LABELS], dim=1)
