"""At build: every step that an image is for imports all that it needs, and the environment holds what its packages ask for."""

import importlib
import pkgutil
import sys

import components

STEPS = {
    "light": ("validate", "weight", "register", "gate", "closing", "embed.gather"),
    "model": ("configure", "ingest", "embed", "train", "reference", "evaluate"),
}
# Not in the images: kfp, which describes the steps to the engine.
ENGINE_ONLY = {"component"}

for step in STEPS[sys.argv[1]]:
    room = importlib.import_module(f"{components.__name__}.{step}")
    if not hasattr(room, "__path__"):
        continue
    for module in pkgutil.iter_modules(room.__path__):
        if module.name not in ENGINE_ONLY and not module.name.startswith("__"):
            importlib.import_module(f"{room.__name__}.{module.name}")
    importlib.import_module(f"{room.__name__}.__main__")
importlib.import_module("mlflow")
