"""Every asset key, in pipeline order: the table of contents of the platform.

Belongs here: keys only, so that jobs, sensors, checks and tests can name assets without importing
them.
"""

import dagster as dg

SOURCE_FILES = dg.AssetKey(["corpus", "source_files"])
PAGES = dg.AssetKey(["corpus", "pages"])
CHUNKS = dg.AssetKey(["corpus", "chunks"])
VECTOR_INDEX = dg.AssetKey(["corpus", "vector_index"])

TRACE_SEGMENTS = dg.AssetKey(["traces", "trace_segments"])
TRACE_RECORDS = dg.AssetKey(["traces", "trace_records"])

SEED_FILE = dg.AssetKey(["seeds", "seed_file"])
HARVESTED_FILE = dg.AssetKey(["seeds", "harvested_file"])
SEED_QUESTIONS = dg.AssetKey(["seeds", "seed_questions"])

GOLDEN_FILE = dg.AssetKey(["eval_set", "golden_file"])
GOLDEN_CASES = dg.AssetKey(["eval_set", "golden_cases"])
EVAL_EMBEDDINGS = dg.AssetKey(["eval_set", "eval_embeddings"])
GUARD_RECALL = dg.AssetKey(["eval_set", "guard_recall"])

SEED_CLUSTERS = dg.AssetKey(["paraphrases", "seed_clusters"])
PARAPHRASES = dg.AssetKey(["paraphrases", "paraphrases"])
GUARDED_QUESTIONS = dg.AssetKey(["paraphrases", "guarded_questions"])

TEACHER_ANSWERS = dg.AssetKey(["labels", "teacher_answers"])
JUDGED_ANSWERS = dg.AssetKey(["labels", "judged_answers"])
LABELLED_EXAMPLES = dg.AssetKey(["labels", "labelled_examples"])
REJECTED_EXAMPLES = dg.AssetKey(["labels", "rejected_examples"])
TEACHER_LOGPROBS = dg.AssetKey(["labels", "teacher_logprobs"])

RECIPE_FILE = dg.AssetKey(["students", "recipe_file"])
TRAINING_SET = dg.AssetKey(["students", "training_set"])
STUDENT_ADAPTER = dg.AssetKey(["students", "student_adapter"])
TRAINING_CURVE = dg.AssetKey(["students", "training_curve"])
HELD_OUT_ANSWERS = dg.AssetKey(["students", "held_out_answers"])
VALIDATION_REPORT = dg.AssetKey(["students", "validation_report"])
CALIBRATION = dg.AssetKey(["students", "calibration"])

ARM_ANSWERS = dg.AssetKey(["parity", "arm_answers"])
GRADED_ANSWERS = dg.AssetKey(["parity", "graded_answers"])
PARITY_REPORT = dg.AssetKey(["parity", "parity_report"])

GATE_VERDICT = dg.AssetKey(["releases", "gate_verdict"])
RELEASE_BUNDLE = dg.AssetKey(["releases", "release_bundle"])
