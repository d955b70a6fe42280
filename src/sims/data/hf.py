"""Hugging Face features in parquet files, read and written with pyarrow alone."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pyarrow as pa

from sims.config import JSON
from sims.errors import UserError
from sims.files import parse_json

Feature = dict[str, JSON]  # how a column is to be read
Features = dict[str, Feature]

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def features_of(schema: pa.Schema) -> Features:
    """The `features` that Hugging Face `datasets` embedded in a schema; empty where there are none."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"], "huggingface")["info"]["features"]
        return {key: value for key, value in features.items() if isinstance(value, dict)}
    except (KeyError, TypeError, AttributeError, UserError):
        return {}


def class_names(feature: Feature) -> tuple[str, ...]:
    """The names of a column's classes; empty where it has none."""
    names = feature.get("names")
    return tuple(map(str, names)) if isinstance(names, list) else ()


def array_shape(feature: Feature) -> tuple[int, ...] | None:
    """The shape of a column's arrays, where it is told."""
    shape = feature.get("shape")
    sizes = tuple(size for size in shape if isinstance(size, int)) if isinstance(shape, list) else ()
    return sizes if sizes and sizes == tuple(shape) else None  # type: ignore[arg-type]


def with_features(schema: pa.Schema, features: Mapping[str, Feature]) -> pa.Schema:
    """The schema with `features` embedded, so that `datasets.load_dataset("parquet", ...)` decodes the columns."""
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def value(dtype: str) -> Feature:
    """The feature of a plain column."""
    return {"dtype": dtype, "_type": "Value"}


def class_label(names: tuple[str, ...]) -> Feature:
    """The feature of a column of class numbers with names."""
    return {"names": list(names), "_type": "ClassLabel"}


def array_feature(shape: tuple[int, ...], dtype: str) -> Feature:
    """The feature of a column of arrays of one shape."""
    if len(shape) == 1:
        return {"feature": value(dtype), "length": shape[0], "_type": "Sequence"}
    return {"shape": list(shape), "dtype": dtype, "_type": f"Array{len(shape)}D"}


def array_field(name: str, array: pa.Array, shape: tuple[int, ...], dtype: str) -> pa.Field:
    """The field of a column of arrays, marked so that `datasets` finds its own extension type (Array3D)."""
    if len(shape) == 1:
        return pa.field(name, array.type)
    extension = f"datasets.features.features.Array{len(shape)}DExtensionType"
    metadata = {"ARROW:extension:name": extension, "ARROW:extension:metadata": json.dumps([list(shape), dtype])}
    return pa.field(name, array.type, metadata=metadata)
