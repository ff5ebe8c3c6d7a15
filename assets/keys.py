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
FEEDBACK_SEGMENTS = dg.AssetKey(["traces", "feedback_segments"])
DECISION_JOURNAL = dg.AssetKey(["traces", "decision_journal"])
DELETION_JOURNAL = dg.AssetKey(["traces", "deletion_journal"])
HOURLY_RECORDS = dg.AssetKey(["traces", "hourly_records"])
QUARANTINED_FRAMES = dg.AssetKey(["traces", "quarantined_frames"])
TRACE_RECORDS = dg.AssetKey(["traces", "trace_records"])
FEEDBACK = dg.AssetKey(["traces", "feedback"])
CURATION_DECISIONS = dg.AssetKey(["traces", "curation_decisions"])
ADMISSIONS = dg.AssetKey(["traces", "admissions"])
ESCALATIONS = dg.AssetKey(["traces", "escalations"])
DELETIONS = dg.AssetKey(["traces", "deletions"])

SEED_FILE = dg.AssetKey(["seeds", "seed_file"])
HARVESTED_FILE = dg.AssetKey(["seeds", "harvested_file"])
SEED_QUESTIONS = dg.AssetKey(["seeds", "seed_questions"])

GOLDEN_FILE = dg.AssetKey(["eval_set", "golden_file"])
GOLDEN_CASES = dg.AssetKey(["eval_set", "golden_cases"])
EVAL_EMBEDDINGS = dg.AssetKey(["eval_set", "eval_embeddings"])
GUARD_RECALL = dg.AssetKey(["eval_set", "guard_recall"])
SUITE_FILES = dg.AssetKey(["eval_set", "suite_files"])
REFUSAL_SUITE = dg.AssetKey(["eval_set", "refusal_suite"])
OVER_REFUSAL_SUITE = dg.AssetKey(["eval_set", "over_refusal_suite"])
BEHAVIOUR_REGISTRY = dg.AssetKey(["eval_set", "behaviour_registry"])
JUDGE_ANCHORS = dg.AssetKey(["eval_set", "judge_anchors"])

SEED_CLUSTERS = dg.AssetKey(["paraphrases", "seed_clusters"])
PARAPHRASES = dg.AssetKey(["paraphrases", "paraphrases"])
DREAMED_QUESTIONS = dg.AssetKey(["paraphrases", "dreamed_questions"])
DREAM_JOURNAL = dg.AssetKey(["paraphrases", "dream_journal"])
GUARDED_QUESTIONS = dg.AssetKey(["paraphrases", "guarded_questions"])

TEACHER_ANSWERS = dg.AssetKey(["labels", "teacher_answers"])
JUDGED_ANSWERS = dg.AssetKey(["labels", "judged_answers"])
LABELLED_EXAMPLES = dg.AssetKey(["labels", "labelled_examples"])
REJECTED_EXAMPLES = dg.AssetKey(["labels", "rejected_examples"])
REFUSAL_RULE = dg.AssetKey(["labels", "refusal_rule"])
TEACHER_LOGPROBS = dg.AssetKey(["labels", "teacher_logprobs"])
CONTAMINATED_EXAMPLES = dg.AssetKey(["labels", "contaminated_examples"])

RECIPE_FILE = dg.AssetKey(["students", "recipe_file"])
TRAINING_SET = dg.AssetKey(["students", "training_set"])
STUDENT_ADAPTER = dg.AssetKey(["students", "student_adapter"])
TRAINING_CURVE = dg.AssetKey(["students", "training_curve"])
HELD_OUT_ANSWERS = dg.AssetKey(["students", "held_out_answers"])
VALIDATION_REPORT = dg.AssetKey(["students", "validation_report"])
CALIBRATION = dg.AssetKey(["students", "calibration"])

SMALLER_STUDENTS = dg.AssetKey(["parity", "smaller_students"])
OPERATING_POINTS = dg.AssetKey(["parity", "operating_points"])
ARM_ANSWERS = dg.AssetKey(["parity", "arm_answers"])
GRADED_ANSWERS = dg.AssetKey(["parity", "graded_answers"])
PARITY_REPORT = dg.AssetKey(["parity", "parity_report"])
ROUTER_CURVE = dg.AssetKey(["parity", "router_curve"])
ROUTER_FIGURES = dg.AssetKey(["parity", "router_figures"])
ECONOMICS = dg.AssetKey(["parity", "economics"])
SUITABILITY = dg.AssetKey(["parity", "suitability"])
EXPERIMENT_REPORT = dg.AssetKey(["parity", "experiment_report"])
SUITE_ANSWERS = dg.AssetKey(["parity", "suite_answers"])
SUITE_GATES = dg.AssetKey(["parity", "suite_gates"])
JUDGE_ANCHOR_RUN = dg.AssetKey(["parity", "judge_anchor_run"])

GATE_VERDICT = dg.AssetKey(["releases", "gate_verdict"])
SKILL_STUDENTS = dg.AssetKey(["releases", "skill_students"])
RELEASE_BUNDLE = dg.AssetKey(["releases", "release_bundle"])

SHADOW_AGREEMENT = dg.AssetKey(["monitoring", "shadow_agreement"])
DISAGREEMENT_CLUSTERS = dg.AssetKey(["monitoring", "disagreement_clusters"])
TRAFFIC_DRIFT = dg.AssetKey(["monitoring", "traffic_drift"])
SERVED_BY_SLICES = dg.AssetKey(["monitoring", "served_by_slices"])
EMBEDDER_PROBE = dg.AssetKey(["monitoring", "embedder_probe"])
ASSIGNMENT_AUDIT = dg.AssetKey(["monitoring", "assignment_audit"])
COLD_START_REPORT = dg.AssetKey(["monitoring", "cold_start_report"])
SAMPLE_AUDIT = dg.AssetKey(["monitoring", "sample_audit"])
POOL_SEPARATION = dg.AssetKey(["monitoring", "pool_separation"])
CURATION_AUDIT = dg.AssetKey(["monitoring", "curation_audit"])
ALARMS = dg.AssetKey(["monitoring", "alarms"])

ON_DEMAND = frozenset(
    {
        SHADOW_AGREEMENT,
        DISAGREEMENT_CLUSTERS,
        TRAFFIC_DRIFT,
        SERVED_BY_SLICES,
        EMBEDDER_PROBE,
        ASSIGNMENT_AUDIT,
        COLD_START_REPORT,
        SAMPLE_AUDIT,
        POOL_SEPARATION,
        CURATION_AUDIT,
        ALARMS,
        DREAMED_QUESTIONS,
        CONTAMINATED_EXAMPLES,
        EXPERIMENT_REPORT,
        SUITE_ANSWERS,
        SUITE_GATES,
        JUDGE_ANCHOR_RUN,
    }
)
"""Assets that a run makes only when its selection names them (`stage/asset`): they cost more than
the whole chain may, or belong to an experiment."""
