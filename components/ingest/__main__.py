import sys

from components.cli import Step
from components.ingest.fetch import source_path
from components.lineage import RAW

STEP = Step(
    name="ingest",
    about="Reads the source, cleans it, splits it by prompt.",
    sections=("ingest", "models"),
    optional={RAW: "the source, in place of the parameter ingest.source"},
    defaults={RAW: source_path},
    outputs={"responses": "clean responses", "rejects": "what was rejected, and why"},
)

if __name__ == "__main__":
    sys.exit(STEP.main())
