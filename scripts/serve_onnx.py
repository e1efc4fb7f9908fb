"""A web service around an exported model; it needs neither this package nor PyTorch.

    jem export runs/digits model.onnx
    pip install fastapi uvicorn onnxruntime
    MODEL=model.onnx uvicorn serve_onnx:app   # in this folder
    curl localhost:8000/predict -H 'Content-Type: application/json' -d '[[[[0, 16, ...], ...]]]'

It takes a list of raw inputs, in the units and the layout of the training data.
"""

import json
import os
from typing import Any

import numpy as np
import onnxruntime
from fastapi import FastAPI, HTTPException

session = onnxruntime.InferenceSession(os.environ["MODEL"])
about = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
app = FastAPI()


@app.post("/predict")
def predict(inputs: list[Any]) -> list[dict[str, Any]]:
    """Class, calibrated probability, p-value, verdict and reason for each input."""
    names = ["class_index", "probabilities", "p_value", "is_ood", "reason"]
    try:
        x = np.array(inputs, np.float64 if about["layout"] == "table" else np.float32)
        found = session.run(names, {"inputs": x})
    except Exception as error:  # nothing but the input can be wrong here
        shape = ", ".join(map(str, about["input_shape"]))
        raise HTTPException(422, f"expected inputs of shape (B, {shape}): {error}") from error
    return [
        {
            "class": about["classes"][k],
            "probability": float(p[k]),
            "p_value": float(p_value),
            "is_ood": bool(is_ood),
            "reason": about["reasons"][why],
        }
        for k, p, p_value, is_ood, why in zip(*found, strict=True)
    ]
