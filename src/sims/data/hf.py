"""Hugging Face features in parquet files, read and written with pyarrow alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

Features = dict[str, dict[str, Any]]

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def features_of(schema: pa.Schema) -> Features:
    """The `features` that Hugging Face `datasets` embedded in a schema; empty where there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {key: value for key, value in features.items() if isinstance(value, dict)}


def with_features(schema: pa.Schema, features: Mapping[str, Mapping[str, Any]]) -> pa.Schema:
    """The schema with `features` embedded, so that `datasets.load_dataset("parquet", ...)` decodes the columns."""
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def value(dtype: str) -> dict[str, Any]:
    """The feature of a plain column."""
    return {"dtype": dtype, "_type": "Value"}


def class_label(names: tuple[str, ...]) -> dict[str, Any]:
    """The feature of a column of class numbers with names."""
    return {"names": list(names), "_type": "ClassLabel"}


def array_feature(shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
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
