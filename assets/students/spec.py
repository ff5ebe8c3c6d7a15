"""What one training needs, as the file that starts its process.

Belongs here: the fields, reading them. Does not belong here: what is done with them (`train`).
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt, ValidationError

from assets.students.checkpoints import CHECKPOINT_SECONDS
from assets.students.prefixes import PrefixEngine
from assets.students.recipe import Recipe
from serving.errors import InvalidInputError
from serving.models.student_rules import NO_RULES, StudentRules


class TrainingSpec(BaseModel):
    """What one training needs.

    Attributes:
        facts: what the caller knows for the provenance.
        checkpoint_seconds: between two checkpoints; longer where writing one takes long.
        checkpoint_steps: write a checkpoint after every so many steps too.
        prefix_engine: who reads the frozen prefixes; what it compiles is kept in `models_folder`.
        rules: what is decided before the student's model is asked.
        reports: a file that gets a JSON line now and then, for whoever follows the training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    training_set: Path
    logprobs: Path | None = None
    recipe: Recipe
    base_folder: Path
    base_hash: str
    adapters_folder: Path
    facts: dict[str, Any]
    prefix_engine: PrefixEngine = "transformers"
    models_folder: Path | None = None
    rules: StudentRules = NO_RULES
    checkpoint_seconds: NonNegativeFloat = CHECKPOINT_SECONDS
    checkpoint_steps: PositiveInt | None = None
    reports: Path | None = None


def read_spec(path: Path) -> TrainingSpec:
    """Read a spec file.

    Raises:
        InvalidInputError: it is missing or wrong; every wrong key is named.
    """
    try:
        return TrainingSpec.model_validate_json(path.read_bytes())
    except OSError as error:
        found = str(error)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    raise InvalidInputError(
        f"reading the training spec {path}",
        expected=f"a JSON object with {', '.join(TrainingSpec.model_fields)}",
        found=found,
        next_step="materialize students/student_adapter, which writes the spec",
    )
