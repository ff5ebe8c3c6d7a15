"""The declared schema of every table: the contract a data scientist can rely on.

The lake checks each frame against it on write, and Dagster shows it as the column schema. Belongs
here: column names and types. Does not belong here: how a column is computed (its stage says so).
"""

from collections.abc import Mapping

import polars as pl

TEXT, INT, FLOAT, FLAG = pl.String(), pl.Int32(), pl.Float64(), pl.Boolean()
TEXTS = pl.List(pl.String())
RETRIEVED = pl.List(pl.Struct({"chunk_id": TEXT, "content_hash": TEXT, "score": FLOAT}))
MESSAGES = pl.List(pl.Struct({"role": TEXT, "content": TEXT}))

PAGES = pl.Schema(
    {
        "page_id": TEXT,
        "path": TEXT,
        "slug": TEXT,
        "title": TEXT,
        "url": TEXT,
        "source": TEXT,
        "source_revision": TEXT,
        "content_hash": TEXT,
    }
)
CHUNKS = pl.Schema(
    {
        "chunk_id": TEXT,
        "page_id": TEXT,
        "ordinal": INT,
        "title": TEXT,
        "heading_path": TEXTS,
        "anchor": TEXT,
        "url": TEXT,
        "text": TEXT,
        "token_count": INT,
        "is_oversized": FLAG,
        "content_hash": TEXT,
    }
)
VECTOR_INDEX = pl.Schema(
    {
        "index_fingerprint": TEXT,
        "embedder_fingerprint": TEXT,
        "chunk_count": INT,
        "dimension": INT,
        "uri": TEXT,
    }
)
TRACE_RECORDS = pl.Schema(
    {
        "trace_id": TEXT,
        "asked_at": pl.Datetime("us", "UTC"),
        "env": TEXT,
        "surface": TEXT,
        "client_kind": TEXT,
        "key_id": TEXT,
        "conversation_id": TEXT,
        "question": TEXT,
        "question_hash": TEXT,
        "prompt_version": TEXT,
        "release_id": TEXT,
        "snapshot_hash": TEXT,
        "index_fingerprint": TEXT,
        "embedder_fingerprint": TEXT,
        "retrieved": RETRIEVED,
        "max_score": FLOAT,
        "prompt_tokens_estimate": INT,
        "phase": TEXT,
        "route": TEXT,
        "route_reason": TEXT,
        "selection_mode": TEXT,
        "propensity": FLOAT,
        "attempts": pl.List(
            pl.Struct(
                {
                    "role": TEXT,
                    "model": TEXT,
                    "adapter_sha": TEXT,
                    "started_ms": FLOAT,
                    "latency_ms": FLOAT,
                    "first_token_ms": FLOAT,
                    "queue_ms": FLOAT,
                    "adapter_load_ms": FLOAT,
                    "cold_start": FLAG,
                    "prompt_tokens": INT,
                    "completion_tokens": INT,
                    "cost_usd": FLOAT,
                    "finish_reason": TEXT,
                    "error": TEXT,
                    "verdict": TEXT,
                }
            )
        ),
        "served_by": TEXT,
        "model": TEXT,
        "answer": TEXT,
        "citations": TEXTS,
        "refused": FLAG,
        "confidence": FLOAT,
        "total_latency_ms": FLOAT,
        "overhead_ms": FLOAT,
        "cost_usd": FLOAT,
        "counterfactual_cost_usd": FLOAT,
        "escalation_requested": FLAG,
        "escalation_granted": FLAG,
        "trainable": FLAG,
        "trainable_reason": TEXT,
        "outcome": TEXT,
        "parent_trace_id": TEXT,
        "canary_arm": TEXT,
        "skill": TEXT,
    }
)
"""The fields of `serving.tracing.record.TraceRecord`, in its order."""

STORED_TRACES = pl.Schema(
    {
        **TRACE_RECORDS,
        "is_injection": FLAG,
        "unknown_fields": TEXT,
        "segment": TEXT,
        "segment_offset": pl.Int64(),
    }
)
"""The rows of the hourly files: a record, what this release did not know of it as JSON, and the
(segment, offset) it came from, which is stored once."""

HOURLY_RECORDS = pl.Schema(
    {
        "hour": pl.Datetime("us", "UTC"),
        "path": TEXT,
        "row_count": pl.Int64(),
        "size_bytes": pl.Int64(),
    }
)
QUARANTINED_FRAMES = pl.Schema(
    {
        "segment": TEXT,
        "segment_offset": pl.Int64(),
        "size_bytes": pl.Int64(),
        "reason": TEXT,
        "lost_count": pl.Int64(),
        "segment_sha256": TEXT,
    }
)
"""`segment_sha256` is of the whole file when this was told: other bytes later are worth reading.
Null where it was not there or did not open.
"""
FEEDBACK = pl.Schema(
    {
        "feedback_id": TEXT,
        "given_at": pl.Datetime("us", "UTC"),
        "env": TEXT,
        "key_id": TEXT,
        "trace_id": TEXT,
        "rating": TEXT,
        "comment": TEXT,
    }
)
CURATION_DECISIONS = pl.Schema(
    {
        "decision_id": TEXT,
        "trace_id": TEXT,
        "decision": TEXT,
        "reviewer": TEXT,
        "reviewer_kind": TEXT,
        "reason_code": TEXT,
        "rubric_version": TEXT,
        "shown_at": pl.Datetime("us", "UTC"),
        "decided_at": pl.Datetime("us", "UTC"),
        "escalation_id": TEXT,
        "contract_version": TEXT,
        "question": TEXT,
        "question_hash": TEXT,
        "env": TEXT,
        "key_id": TEXT,
        "conversation_id": TEXT,
        "asked_at": pl.Datetime("us", "UTC"),
        "trainable": FLAG,
        "escalation_requested": FLAG,
        "is_injection": FLAG,
    }
)
"""The journal of decisions as a table: who decided what, and what stood in the trace then."""

ADMISSIONS = pl.Schema(
    {
        "decision_id": TEXT,
        "trace_id": TEXT,
        "key_id": TEXT,
        "decided_at": pl.Datetime("us", "UTC"),
        "is_admitted": FLAG,
        "reason": TEXT,
    }
)
ESCALATIONS = pl.Schema(
    {
        "escalation_id": TEXT,
        "contract_version": TEXT,
        "trace_id": TEXT,
        "reason": TEXT,
        "opened_at": pl.Datetime("us", "UTC"),
        "shown_at": pl.Datetime("us", "UTC"),
        "closed_at": pl.Datetime("us", "UTC"),
        "closed_by": TEXT,
        "reviewer_kind": TEXT,
        "decision": TEXT,
    }
)
DELETIONS = pl.Schema(
    {
        "deletion_id": TEXT,
        "kind": TEXT,
        "value": TEXT,
        "key_id": TEXT,
        "reason": TEXT,
        "requested_by": TEXT,
        "requested_at": pl.Datetime("us", "UTC"),
        "trace_ids": TEXTS,
        "adapters": TEXTS,
        "doubtful_adapters": TEXTS,
    }
)
"""Tombstones: what has to be gone, the traces it named, and the adapters to train again without
them. `key_id` says whose conversation is meant, null: one without a key. Of `doubtful_adapters`,
which are among `adapters`, nobody can tell any more what they learned from."""

HARVESTED_QUESTIONS = pl.Schema(
    {
        "text": TEXT,
        "source_trace_id": TEXT,
        "env": TEXT,
        "decision": TEXT,
        "reviewer": TEXT,
        "reviewer_kind": TEXT,
        "reason_code": TEXT,
        "rubric_version": TEXT,
        "decided_at": pl.Datetime("us", "UTC"),
        "trainable": FLAG,
    }
)
"""Curated production questions, one row per decision, appended and never edited: the file that
`seeds.harvested` names. No asset writes it, so it is not in `BY_KEY`."""

SEED_QUESTIONS = pl.Schema(
    {
        "question_id": TEXT,
        "text": TEXT,
        "source": TEXT,
        "source_trace_id": TEXT,
        "tags": TEXTS,
        "added_at": pl.Datetime("us", "UTC"),
    }
)
GOLDEN_CASES = pl.Schema(
    {
        "case_id": TEXT,
        "bucket": TEXT,
        "question": TEXT,
        "must_include": TEXTS,
        "gold_pages": TEXTS,
        "gold_headings": TEXTS,
        "should_refuse": FLAG,
        "behaviours": TEXTS,
        "note": TEXT,
        "set_hash": TEXT,
    }
)
SUITE_CASES = pl.Schema(
    {
        "case_id": TEXT,
        "suite": TEXT,
        "question": TEXT,
        "kind": TEXT,
        "is_critical": FLAG,
        "should_refuse": FLAG,
        "must_include": TEXTS,
        "gold_pages": TEXTS,
        "core_id": TEXT,
        "template": TEXT,
        "set_hash": TEXT,
    }
)
"""Refusal suite, over-refusal suite and behaviour registry; in the registry `kind` is the
behaviour. Cases with one `core_id` ask for the same thing in other words."""

JUDGE_ANCHORS = pl.Schema(
    {
        "anchor_id": TEXT,
        "core_id": TEXT,
        "construction": TEXT,
        "question": TEXT,
        "messages": MESSAGES,
        "answer": TEXT,
        "axis": TEXT,
        "is_good": FLAG,
        "set_hash": TEXT,
    }
)
EVAL_EMBEDDINGS = pl.Schema(
    {
        "case_id": TEXT,
        "suite": TEXT,
        "question": TEXT,
        "embedder_fingerprint": TEXT,
        "vector": pl.List(pl.Float32()),
    }
)
GUARD_RECALL = pl.Schema(
    {
        "kind": TEXT,
        "is_planted": FLAG,
        "rule": TEXT,
        "threshold": FLOAT,
        "caught": INT,
        "n": INT,
        "ratio": FLOAT,
        "lower": FLOAT,
        "upper": FLOAT,
    }
)
SEED_CLUSTERS = pl.Schema(
    {"question_id": TEXT, "cluster_id": INT, "is_medoid": FLAG, "distance": FLOAT}
)
PARAPHRASES = pl.Schema(
    {
        "question_id": TEXT,
        "seed_id": TEXT,
        "text": TEXT,
        "teacher_id": TEXT,
        "temperature": FLOAT,
        "prompt_version": TEXT,
    }
)
DREAMED_QUESTIONS = pl.Schema(
    {
        "question_id": TEXT,
        "seed_id": TEXT,
        "text": TEXT,
        "teacher_id": TEXT,
        "temperature": FLOAT,
        "prompt_version": TEXT,
        "generation": INT,
        "evidence": TEXT,
        "weak_ratio": FLOAT,
        "asked_count": INT,
        "dreamed_at": pl.Datetime("us", "UTC"),
    }
)
GUARDED_QUESTIONS = pl.Schema(
    {
        "question_id": TEXT,
        "text": TEXT,
        "seed_id": TEXT,
        "origin": TEXT,
        "nearest_case_id": TEXT,
        "nearest_cosine": FLOAT,
        "verdict": TEXT,
        "reason": TEXT,
        "matched_case_id": TEXT,
        "shared_ngram": TEXT,
    }
)
TEACHER_ANSWERS = pl.Schema(
    {
        "question_id": TEXT,
        "seed_id": TEXT,
        "question": TEXT,
        "retrieved": RETRIEVED,
        "messages": MESSAGES,
        "raw": TEXT,
        "answer": TEXT,
        "citations": TEXTS,
        "refused": FLAG,
        "validator_verdict": TEXT,
        "teacher_id": TEXT,
        "prompt_version": TEXT,
        "index_fingerprint": TEXT,
        "prompt_tokens": INT,
        "completion_tokens": INT,
        "cost_usd": FLOAT,
        "latency_ms": FLOAT,
        "content_key": TEXT,
        "pipeline_fingerprint": TEXT,
    }
)
"""`pipeline_fingerprint`: identity of all that decides a row beside its question; under the same
one a row is kept by the next run."""

JUDGED_ANSWERS = pl.Schema(
    {
        "content_key": TEXT,
        "question_id": TEXT,
        "axis": TEXT,
        "score": INT,
        "status": TEXT,
        "rater_kind": TEXT,
        "rater_id": TEXT,
        "judge_epoch": TEXT,
        "rubric_version": TEXT,
        "rationale": TEXT,
        "judging_key": TEXT,
    }
)
"""`status` is `judged`, or why there is no score: `unreadable`, `rejected`, `unreachable`.
`judging_key`: identity of judge, ruler and all that the judge read; under the same one a judgement
is kept by the next run."""

LABELLED_EXAMPLES = pl.Schema(
    {
        "example_id": TEXT,
        "question_id": TEXT,
        "seed_id": TEXT,
        "question": TEXT,
        "messages": MESSAGES,
        "completion": TEXT,
        "refused": FLAG,
        "split": TEXT,
        "weight": FLOAT,
        "teacher_id": TEXT,
        "teacher_license": TEXT,
        "trainable": FLAG,
        "prompt_version": TEXT,
        "index_fingerprint": TEXT,
        "content_key": TEXT,
    }
)
REJECTED_EXAMPLES = pl.Schema(
    {
        "question_id": TEXT,
        "seed_id": TEXT,
        "question": TEXT,
        "completion": TEXT,
        "refused": FLAG,
        "reason": TEXT,
        "validator_verdict": TEXT,
        "judge_status": TEXT,
        "lowest_axis": TEXT,
        "lowest_score": INT,
        "rationale": TEXT,
        "held_out_question_id": TEXT,
        "held_out_cosine": FLOAT,
        "judge_id": TEXT,
        "judge_epoch": TEXT,
        "rubric_version": TEXT,
        "teacher_id": TEXT,
        "prompt_version": TEXT,
        "index_fingerprint": TEXT,
        "content_key": TEXT,
    }
)
"""`reason` is `invalid` (see `validator_verdict`), `judge_inconclusive` (see `judge_status`),
`below_minimum_score` (see `lowest_axis`) or `near_held_out` (see `held_out_*`). `judge_*` is the
judge in use, also where it was not asked."""

OPERATING_POINTS = pl.Schema(
    {
        "arm": TEXT,
        "target_teacher_ratio": FLOAT,
        "quantile": FLOAT,
        "min_retrieval_score": FLOAT,
        "confidence_threshold": FLOAT,
        "teacher_ratio": FLOAT,
        "lower": FLOAT,
        "upper": FLOAT,
        "case_count": INT,
        "invalid_count": INT,
        "adapter_sha256": TEXT,
    }
)
"""Thresholds of the router, and the teacher's share of held-out questions at them, fallbacks
counted. `confidence_threshold` is null where no answer has a confidence."""

ARM_ANSWERS = pl.Schema(
    {
        "arm": TEXT,
        "case_id": TEXT,
        "repeat": INT,
        "question": TEXT,
        "answer": TEXT,
        "raw": TEXT,
        "messages": MESSAGES,
        "refused": FLAG,
        "citations": TEXTS,
        "retrieved": RETRIEVED,
        "served_by": TEXT,
        "route_reason": TEXT,
        "verdict": TEXT,
        "confidence": FLOAT,
        "used_fallback": FLAG,
        "model": TEXT,
        "prompt_tokens_estimate": INT,
        "prompt_tokens": INT,
        "completion_tokens": INT,
        "cost_usd": FLOAT,
        "retrieval_ms": FLOAT,
        "latency_ms": FLOAT,
        "first_token_ms": FLOAT,
        "error": TEXT,
        "adapter_sha256": TEXT,
        "pipeline_fingerprint": TEXT,
    }
)
"""Times are null but in the rows that were timed one by one; `first_token_ms` also where an engine
does not report its first token. `adapter_sha256` and `pipeline_fingerprint` name the candidate, as
in suite_answers."""

STUDENT_ADAPTER = pl.Schema(
    {
        "recipe": TEXT,
        "kind": TEXT,
        "student": TEXT,
        "adapter": TEXT,
        "adapter_sha256": TEXT,
        "base_model": TEXT,
        "base_revision": TEXT,
        "base_hash": TEXT,
        "activation": TEXT,
        "training_key": TEXT,
        "lane": TEXT,
        "training_seconds": FLOAT,
        "train_count": INT,
        "validation_count": INT,
        "final_validation_loss": FLOAT,
    }
)
"""`activation` and `final_validation_loss` are null where `kind` trains nothing. `lane` is `clean`,
or `contaminated`: trained on the golden questions on purpose, and never promoted."""

RELEASE_BUNDLE = pl.Schema(
    {
        "release_id": TEXT,
        "parent": TEXT,
        "sequence": INT,
        "phase": TEXT,
        "verdict": TEXT,
        "is_current": FLAG,
        "folder": TEXT,
        "skills": pl.List(
            pl.Struct({"skill": TEXT, "recipe": TEXT, "adapter": TEXT, "adapter_sha256": TEXT})
        ),
    }
)

REFUSAL_RULE = pl.Schema(
    {
        "intercept": FLOAT,
        "weight": FLOAT,
        "minimum_score": FLOAT,
        "is_certified": FLAG,
        "refusal_count": INT,
        "answer_count": INT,
        "refused_ratio": FLOAT,
        "refused_lower_ratio": FLOAT,
        "answered_ratio": FLOAT,
        "answered_lower_ratio": FLOAT,
    }
)
TEACHER_LOGPROBS = pl.Schema(
    {
        "example_id": TEXT,
        "token_hash": TEXT,
        "tokenizer_id": TEXT,
        "token_ids": pl.List(INT),
        "top_ids": pl.List(pl.List(INT)),
        "top_logprobs": pl.List(pl.List(pl.Float16())),
        "y_logp": pl.List(pl.Float32()),
        "tail_logp": pl.List(pl.Float32()),
        "soft_ok": pl.List(FLAG),
        "cite": pl.List(FLAG),
        "source": TEXT,
        "alignment": TEXT,
        "temperature": FLOAT,
        "scorer_id": TEXT,
        "scorer_hash": TEXT,
        "scorer_dtype": TEXT,
        "group_low": pl.List(pl.List(INT)),
        "group_high": pl.List(pl.List(INT)),
        "group_number": pl.List(pl.List(INT)),
        "group_logprobs": pl.List(pl.List(pl.Float32())),
        "vocabulary_id": TEXT,
        "soft_token_ratio": FLOAT,
        "reason": TEXT,
    }
)
"""One row per training example. `tail_logp` is the log of the mass outside the top ids and the
realised token together, or outside all groups. `source` is `scorer`, `teacher` or `none`;
`alignment` says what the targets are: `exact` (student tokens, `top_*`), `bytes` (intervals of the
vocabulary sorted by bytes, `group_*`, under the sort `vocabulary_id`) or `none` (hard only, see
`reason`). `scorer_*` is who supplied the numbers, the teacher too."""

TRAINING_SET = pl.Schema(
    {
        "example_id": TEXT,
        "split": TEXT,
        "refused": FLAG,
        "weight": FLOAT,
        "prefix_ids": pl.List(INT),
        "suffix_ids": pl.List(INT),
        "answer_ids": pl.List(INT),
        "cite_mask": pl.List(FLAG),
        "token_hash": TEXT,
    }
)
"""`token_hash` is over the ids of prompt and answer: where the prompt is split does not matter. A
recipe whose kind trains nothing has no tokens: the lists are null, the hash is the answer's key.
"""

TRAINING_CURVE = pl.Schema(
    {
        "step": INT,
        "loss": FLOAT,
        "hard_loss": FLOAT,
        "soft_loss": FLOAT,
        "grad_norm": FLOAT,
        "tokens_per_second": FLOAT,
        "step_seconds": FLOAT,
        "floor_flops": FLOAT,
        "peak_memory_mb": FLOAT,
        "validation_loss": FLOAT,
    }
)
"""One row per optimizer step. `floor_flops` is the least floating-point work the step can do
(`assets/students/flops`). `hard_loss` is mean cross-entropy, `soft_loss` mean T^2 KL over the
tokens that have a soft target (null without any), `validation_loss` mean cross-entropy on held-out
examples, at the last step of each epoch."""

HELD_OUT_ANSWERS = pl.Schema(
    {
        "arm": TEXT,
        "example_id": TEXT,
        "seed_id": TEXT,
        "split": TEXT,
        "question": TEXT,
        "is_out_of_scope": FLAG,
        "label_answer": TEXT,
        "label_citations": TEXTS,
        "label_refused": FLAG,
        "raw": TEXT,
        "answer": TEXT,
        "citations": TEXTS,
        "refused": FLAG,
        "verdict": TEXT,
        "retrieved": RETRIEVED,
        "model": TEXT,
        "prompt_tokens_estimate": INT,
        "prompt_tokens": INT,
        "completion_tokens": INT,
        "latency_ms": FLOAT,
        "mean_logprob": FLOAT,
        "raw_logit": FLOAT,
        "citation_logprob": FLOAT,
        "first_margin": FLOAT,
        "mean_margin": FLOAT,
        "retrieval_score": FLOAT,
        "retrieval_margin": FLOAT,
        "is_refusal": FLOAT,
        "is_routed_to_student": FLAG,
        "adapter_sha256": TEXT,
        "engine": TEXT,
        "dtype": TEXT,
        "error": TEXT,
    }
)
"""`refused` is what the model itself decided: an invalid answer is not one. The columns from
`raw_logit` to `is_refusal` are the signals of `serving.pipeline.confidence`."""

VALIDATION_REPORT = pl.Schema(
    {
        "kind": TEXT,
        "arm": TEXT,
        "metric": TEXT,
        "value": FLOAT,
        "lower": FLOAT,
        "upper": FLOAT,
        "n": INT,
        "numerator": FLOAT,
        "denominator": FLOAT,
        "method": TEXT,
        "n10": INT,
        "n01": INT,
        "mcnemar_p": FLOAT,
    }
)
"""`kind`: `arm` or `difference` (arm = `student-top1`: first minus second, on the same cases). No
evidence: value and limits null, n 0."""

_MEASURES = (
    "brier", "ece", "ece_lower", "ece_upper", "aurc", "risk_at_80", "risk_at_90",
)  # fmt: skip
CALIBRATION = pl.Schema(
    {
        "recipe": TEXT,
        "adapter_sha256": TEXT,
        "engine": TEXT,
        "dtype": TEXT,
        "method": TEXT,
        "temperature": FLOAT,
        "asked_count": INT,
        "invalid_count": INT,
        "fit_count": INT,
        "certify_count": INT,
        "validation_count": INT,
        **{f"{measure}_{when}": FLOAT for when in ("before", "after") for measure in _MEASURES},
        "thresholds": pl.List(
            pl.Struct(
                {
                    "risk_limit_ratio": FLOAT,
                    "threshold": FLOAT,
                    "accepted_count": INT,
                    "wrong_count": INT,
                    "coverage_ratio": FLOAT,
                    "risk_upper_ratio": FLOAT,
                }
            )
        ),
        "calibration_seeds": TEXTS,
        "calibrator": TEXT,
        "calibrator_hash": TEXT,
    }
)
"""One row. The measures are of valid validation answers; `calibrator` is the JSON that a release
carries, null where there was nothing to fit."""

GRADED_ANSWERS = pl.Schema(
    {
        "arm": TEXT,
        "case_id": TEXT,
        "repeat": INT,
        "metric": TEXT,
        "value": FLOAT,
        "numerator": FLOAT,
        "denominator": FLOAT,
        "status": TEXT,
        "detail": TEXT,
        "adapter_sha256": TEXT,
        "pipeline_fingerprint": TEXT,
    }
)
"""`adapter_sha256` and `pipeline_fingerprint` are those of the answers."""

PARITY_REPORT = pl.Schema(
    {
        "kind": TEXT,
        "arm": TEXT,
        "slice": TEXT,
        "metric": TEXT,
        "value": FLOAT,
        "lower": FLOAT,
        "upper": FLOAT,
        "n": INT,
        "numerator": FLOAT,
        "denominator": FLOAT,
        "inconclusive_count": INT,
        "method": TEXT,
        "n10": INT,
        "n01": INT,
        "mcnemar_p": FLOAT,
        "bootstrap_lower": FLOAT,
        "bootstrap_upper": FLOAT,
    }
)
"""`kind`: `arm` (arm = its name), `difference` (arm = `student-teacher`: first minus second) or
`ratio` (arm = `routed/teacher`, of mean cost). No evidence: value and limits null, n 0."""

ROUTER_CURVE = pl.Schema(
    {
        "step": INT,
        "min_retrieval_score": FLOAT,
        "confidence_threshold": FLOAT,
        "direct_ratio": FLOAT,
        "student_calls_ratio": FLOAT,
        "teacher_ratio": FLOAT,
        "quality": FLOAT,
        "random_quality": FLOAT,
        "oracle_quality": FLOAT,
        "usd_per_1k": FLOAT,
        "case_count": INT,
    }
)
"""`quality` is agreement with the teacher's label on held-out questions. `random_quality` is that
of drawing lots at the same share, `oracle_quality` of knowing which answers are wrong.
`student_calls_ratio`: questions whose student model is asked; a refusal by a rule asks none."""

ROUTER_FIGURES = pl.Schema(
    {
        "figure": TEXT,
        "value": FLOAT,
        "lower": FLOAT,
        "upper": FLOAT,
        "n": INT,
        "method": TEXT,
    }
)
"""apgr, cpt_50, cpt_80, cpt_95 and paraphrase_flip_ratio."""

SUITABILITY = pl.Schema(
    {
        "kind": TEXT,
        "source": TEXT,
        "question_count": INT,
        "volume_ratio": FLOAT,
        "cost_ratio": FLOAT,
        "repetitive_ratio": FLOAT,
        "checkable_ratio": FLOAT,
        "high_stakes_ratio": FLOAT,
        "labelled_count": INT,
        "advice": TEXT,
        "reason": TEXT,
    }
)
"""`kind` is named by the page that most of its answers cite; of several kinds of one page the later
carry a number. `advice`: distil, measure_first, keep_teacher."""

EXPERIMENT_REPORT = pl.Schema(
    {
        "experiment": TEXT,
        "recipe": TEXT,
        "arm": TEXT,
        "against": TEXT,
        "metric": TEXT,
        "predicted_delta": FLOAT,
        "declared_delta": FLOAT,
        "registration": TEXT,
        "registered_at": TEXT,
        "prediction_hash": TEXT,
        "measured_delta": FLOAT,
        "lower": FLOAT,
        "upper": FLOAT,
        "n": INT,
        "method": TEXT,
        "inconclusive_count": INT,
        "mcnemar_p": FLOAT,
        "outcome": TEXT,
    }
)
"""`against` is `recipe:arm`. `outcome`: confirmed, undecided, contradicted or unmeasured; it judges
`predicted_delta`, which is what was registered before the student's first answers; `unpredicted`
where it was declared later, or for another comparison. `declared_delta` is what the recipe or the
config says today.
`registration`: `unchanged`, `changed` or `added` since it was registered, `withdrawn` from the
config, `none` where nothing is registered of this student, `retired` where the whole experiment is
declared no more: its row is the one last reported. `prediction_hash` identifies all that the
experiment had predicted."""

ECONOMICS = pl.Schema(
    {
        "arm": TEXT,
        "scenario": TEXT,
        "asks_per_month": FLOAT,
        "utilisation_ratio": FLOAT,
        "teacher_usd_per_1k": FLOAT,
        "routed_usd_per_1k": FLOAT,
        "teacher_share_ratio": FLOAT,
        "fallback_ratio": FLOAT,
        "teacher_usd_per_month": FLOAT,
        "teacher_part_usd_per_month": FLOAT,
        "student_usd_per_month": FLOAT,
        "double_paid_usd_per_month": FLOAT,
        "upkeep_usd_per_month": FLOAT,
        "saving_usd_per_month": FLOAT,
        "one_off_usd": FLOAT,
        "payback_weeks": FLOAT,
        "break_even_calls": FLOAT,
        "roi_ratio": FLOAT,
        "is_worth_investing": FLAG,
        "case_count": INT,
        "inconclusive_reason": TEXT,
    }
)
"""`scenario`: pessimistic, expected or optimistic. Null: it never pays back, or costs nothing; with
an `inconclusive_reason` nothing is known of money: a price or a timing is missing."""

SUITE_ANSWERS = pl.Schema(
    {
        "suite": TEXT,
        "arm": TEXT,
        "case_id": TEXT,
        "wording": INT,
        "question": TEXT,
        "answer": TEXT,
        "raw": TEXT,
        "refused": FLAG,
        "verdict": TEXT,
        "served_by": TEXT,
        "route_reason": TEXT,
        "used_fallback": FLAG,
        "model": TEXT,
        "prompt_tokens": INT,
        "completion_tokens": INT,
        "cost_usd": FLOAT,
        "error": TEXT,
        "is_passed": FLAG,
        "set_hash": TEXT,
        "adapter_sha256": TEXT,
        "pipeline_fingerprint": TEXT,
        "released_fingerprint": TEXT,
    }
)
"""`is_passed` is null where there is no answer: a failure of the server is none of the model's.
`adapter_sha256` and `pipeline_fingerprint` say which candidate the rows are evidence of: its
weights; and all that decides its answers beside them. `released_fingerprint` is of the student that
`last_release` is, null where there is none."""

SUITE_GATES = pl.Schema(
    {
        "name": TEXT,
        "unit": TEXT,
        "relation": TEXT,
        "outcome": TEXT,
        "number": FLOAT,
        "limit": FLOAT,
        "n": INT,
        "detail": TEXT,
        "is_gating": FLAG,
        "set_hash": TEXT,
        "adapter_sha256": TEXT,
        "pipeline_fingerprint": TEXT,
        "released_fingerprint": TEXT,
    }
)
JUDGE_ANCHOR_RUN = pl.Schema(
    {
        "wave": pl.Date(),
        "anchor_id": TEXT,
        "core_id": TEXT,
        "construction": TEXT,
        "axis": TEXT,
        "is_good": FLAG,
        "score": INT,
        "rater_kind": TEXT,
        "rater_id": TEXT,
        "judge_epoch": TEXT,
        "rubric_version": TEXT,
        "set_hash": TEXT,
    }
)
"""`rater_kind`: `judge`, `blind` (the judge asked again, in another draw) or `human`. Rows of
earlier waves are kept; `score` is null where the judge was inconclusive."""

GATE_VERDICT = pl.Schema(
    {
        "position": INT,
        "verdict": TEXT,
        "gate": TEXT,
        "outcome": TEXT,
        "is_gating": FLAG,
        "number": FLOAT,
        "relation": TEXT,
        "limit": FLOAT,
        "unit": TEXT,
        "n": INT,
        "detail": TEXT,
        "statement": TEXT,
        "needed_cases": INT,
        "more_cases": INT,
        "evidence": TEXT,
        "adapter_sha256": TEXT,
        "pipeline_fingerprint": TEXT,
    }
)
"""`needed_cases`: of the kind that the gate counts; `more_cases`: golden cases, for all open gates.
`evidence`: JSON of what the verdict rests on beside the numbers, the same in every row: the
gate's policy, and the baseline that a later release may be compared with. `adapter_sha256` and
`pipeline_fingerprint` name the candidate, as in suite_answers."""

MEASUREMENTS = pl.Schema(
    {
        "monitor": TEXT,
        "slice": TEXT,
        "metric": TEXT,
        "outcome": TEXT,
        "number": FLOAT,
        "lower": FLOAT,
        "upper": FLOAT,
        "relation": TEXT,
        "limit": FLOAT,
        "p_value": FLOAT,
        "n": pl.Int64(),
        "detail": TEXT,
        "window_start": pl.Datetime("us", "UTC"),
        "window_end": pl.Datetime("us", "UTC"),
    }
)
"""`outcome`: `within` or `past` its own limit, `inconclusive` (`detail` says what is missing) or
`shown`. One with a p-value alarms when it is past its limit and Holm's correction leaves it so."""

DISAGREEMENT_CLUSTERS = pl.Schema(
    {
        "cluster_id": TEXT,
        "medoid_trace_id": TEXT,
        "question_count": pl.Int64(),
        "pair_count": pl.Int64(),
        "asked_count": pl.Int64(),
        "p_value": FLOAT,
        "trace_ids": TEXTS,
        "nearest_behaviour": TEXT,
        "nearest_cosine": FLOAT,
        "is_registered": FLAG,
        "window_start": pl.Datetime("us", "UTC"),
        "window_end": pl.Datetime("us", "UTC"),
    }
)
ALARMS = pl.Schema(
    {
        "monitor": TEXT,
        "status": TEXT,
        "slice": TEXT,
        "metric": TEXT,
        "number": FLOAT,
        "relation": TEXT,
        "limit": FLOAT,
        "p_value": FLOAT,
        "adjusted_p_value": FLOAT,
        "n": pl.Int64(),
        "detail": TEXT,
        "window_start": pl.Datetime("us", "UTC"),
        "window_end": pl.Datetime("us", "UTC"),
    }
)
"""One row per monitor. `status`: `ok`, `alarm` or `inconclusive`; the other columns are those of
the measurement that decided it. `relation`: `at least` or `at most` the limit."""

MARTS: Mapping[str, pl.Schema] = {
    "asks": pl.Schema(
        {
            "trace_id": TEXT,
            "asked_at": pl.Datetime("us", "UTC"),
            "env": TEXT,
            "client_kind": TEXT,
            "key_id": TEXT,
            "conversation_id": TEXT,
            "release_id": TEXT,
            "topic": TEXT,
            "max_score": FLOAT,
            "phase": TEXT,
            "route": TEXT,
            "route_reason": TEXT,
            "selection_mode": TEXT,
            "served_by": TEXT,
            "model": TEXT,
            "is_refused": FLAG,
            "is_answered": FLAG,
            "outcome": TEXT,
            "confidence": FLOAT,
            "total_latency_ms": FLOAT,
            "overhead_ms": FLOAT,
            "cost_usd": FLOAT,
            "counterfactual_cost_usd": FLOAT,
            "is_escalation_requested": FLAG,
            "is_escalation_granted": FLAG,
            "is_trainable": FLAG,
            "is_injection": FLAG,
        }
    ),
    "attempts": pl.Schema(
        {
            "trace_id": TEXT,
            "attempt_number": pl.Int64(),
            "asked_at": pl.Datetime("us", "UTC"),
            "env": TEXT,
            "role": TEXT,
            "model": TEXT,
            "latency_ms": FLOAT,
            "first_token_ms": FLOAT,
            "queue_ms": FLOAT,
            "is_cold": FLAG,
            "prompt_tokens": pl.Int64(),
            "completion_tokens": pl.Int64(),
            "cost_usd": FLOAT,
            "error": TEXT,
            "verdict": TEXT,
        }
    ),
    "served_by_hourly": pl.Schema(
        {
            "asked_hour": pl.Datetime("us", "UTC"),
            "env": TEXT,
            "topic": TEXT,
            "served_by": TEXT,
            "ask_count": pl.Int64(),
            "refusal_count": pl.Int64(),
            "cost_usd": FLOAT,
        }
    ),
    "fallbacks": pl.Schema(
        {
            "trace_id": TEXT,
            "asked_at": pl.Datetime("us", "UTC"),
            "env": TEXT,
            "topic": TEXT,
            "first_model": TEXT,
            "reason": TEXT,
            "served_by": TEXT,
            "is_refused": FLAG,
            "is_answered": FLAG,
            "wasted_cost_usd": FLOAT,
        }
    ),
    "escalation_requests": pl.Schema(
        {
            "trace_id": TEXT,
            "asked_at": pl.Datetime("us", "UTC"),
            "env": TEXT,
            "key_id": TEXT,
            "is_escalation_granted": FLAG,
            "served_by": TEXT,
            "cost_usd": FLOAT,
        }
    ),
    "savings_daily": pl.Schema(
        {
            "asked_date": pl.Date(),
            "env": TEXT,
            "ask_count": pl.Int64(),
            "cost_usd": FLOAT,
            "counterfactual_cost_usd": FLOAT,
            "saved_usd": FLOAT,
        }
    ),
    "latency_percentiles": pl.Schema(
        {
            "asked_hour": pl.Datetime("us", "UTC"),
            "env": TEXT,
            "role": TEXT,
            "is_cold": FLAG,
            "attempt_count": pl.Int64(),
            "p50_ms": FLOAT,
            "p95_ms": FLOAT,
            "p99_ms": FLOAT,
        }
    ),
    "retrain_candidates": pl.Schema(
        {
            "question_hash": TEXT,
            "trace_id": TEXT,
            "question": TEXT,
            "topic": TEXT,
            "ask_count": pl.Int64(),
            "key_count": pl.Int64(),
            "fallback_count": pl.Int64(),
            "refusal_count": pl.Int64(),
            "lowest_score": FLOAT,
            "last_asked_at": pl.Datetime("us", "UTC"),
        }
    ),
    "unhappy_sessions": pl.Schema(
        {
            "key_id": TEXT,
            "conversation_id": TEXT,
            "env": TEXT,
            "started_at": pl.Datetime("us", "UTC"),
            "ended_at": pl.Datetime("us", "UTC"),
            "ask_count": pl.Int64(),
            "refusal_count": pl.Int64(),
            "problem_count": pl.Int64(),
            "escalation_count": pl.Int64(),
        }
    ),
}
"""The marts of `dbt_traces/`, whose contracts say the same; the lake holds them in `traces/`."""

BY_KEY: Mapping[tuple[str, ...], pl.Schema] = {
    ("corpus", "pages"): PAGES,
    ("corpus", "chunks"): CHUNKS,
    ("corpus", "vector_index"): VECTOR_INDEX,
    ("traces", "hourly_records"): HOURLY_RECORDS,
    ("traces", "quarantined_frames"): QUARANTINED_FRAMES,
    ("traces", "trace_records"): TRACE_RECORDS,
    ("traces", "feedback"): FEEDBACK,
    ("traces", "curation_decisions"): CURATION_DECISIONS,
    ("traces", "admissions"): ADMISSIONS,
    ("traces", "escalations"): ESCALATIONS,
    ("traces", "deletions"): DELETIONS,
    ("seeds", "seed_questions"): SEED_QUESTIONS,
    ("eval_set", "golden_cases"): GOLDEN_CASES,
    ("eval_set", "eval_embeddings"): EVAL_EMBEDDINGS,
    ("eval_set", "guard_recall"): GUARD_RECALL,
    ("eval_set", "refusal_suite"): SUITE_CASES,
    ("eval_set", "over_refusal_suite"): SUITE_CASES,
    ("eval_set", "behaviour_registry"): SUITE_CASES,
    ("eval_set", "judge_anchors"): JUDGE_ANCHORS,
    ("paraphrases", "seed_clusters"): SEED_CLUSTERS,
    ("paraphrases", "paraphrases"): PARAPHRASES,
    ("paraphrases", "dreamed_questions"): DREAMED_QUESTIONS,
    ("paraphrases", "guarded_questions"): GUARDED_QUESTIONS,
    ("labels", "teacher_answers"): TEACHER_ANSWERS,
    ("labels", "judged_answers"): JUDGED_ANSWERS,
    ("labels", "labelled_examples"): LABELLED_EXAMPLES,
    ("labels", "rejected_examples"): REJECTED_EXAMPLES,
    ("labels", "contaminated_examples"): LABELLED_EXAMPLES,
    ("labels", "refusal_rule"): REFUSAL_RULE,
    ("labels", "teacher_logprobs"): TEACHER_LOGPROBS,
    ("students", "training_set"): TRAINING_SET,
    ("students", "student_adapter"): STUDENT_ADAPTER,
    ("students", "training_curve"): TRAINING_CURVE,
    ("students", "held_out_answers"): HELD_OUT_ANSWERS,
    ("students", "validation_report"): VALIDATION_REPORT,
    ("students", "calibration"): CALIBRATION,
    ("parity", "operating_points"): OPERATING_POINTS,
    ("parity", "arm_answers"): ARM_ANSWERS,
    ("parity", "graded_answers"): GRADED_ANSWERS,
    ("parity", "parity_report"): PARITY_REPORT,
    ("parity", "router_curve"): ROUTER_CURVE,
    ("parity", "router_figures"): ROUTER_FIGURES,
    ("parity", "economics"): ECONOMICS,
    ("parity", "suitability"): SUITABILITY,
    ("parity", "experiment_report"): EXPERIMENT_REPORT,
    ("parity", "suite_answers"): SUITE_ANSWERS,
    ("parity", "suite_gates"): SUITE_GATES,
    ("parity", "judge_anchor_run"): JUDGE_ANCHOR_RUN,
    ("releases", "gate_verdict"): GATE_VERDICT,
    ("releases", "release_bundle"): RELEASE_BUNDLE,
    **{("traces", name): schema for name, schema in MARTS.items()},
    ("monitoring", "shadow_agreement"): MEASUREMENTS,
    ("monitoring", "disagreement_clusters"): DISAGREEMENT_CLUSTERS,
    ("monitoring", "traffic_drift"): MEASUREMENTS,
    ("monitoring", "served_by_slices"): MEASUREMENTS,
    ("monitoring", "embedder_probe"): MEASUREMENTS,
    ("monitoring", "assignment_audit"): MEASUREMENTS,
    ("monitoring", "cold_start_report"): MEASUREMENTS,
    ("monitoring", "sample_audit"): MEASUREMENTS,
    ("monitoring", "pool_separation"): MEASUREMENTS,
    ("monitoring", "curation_audit"): MEASUREMENTS,
    ("monitoring", "alarms"): ALARMS,
}

PRIVATE_STAGES = frozenset({"traces", "seeds", "paraphrases", "labels", "students", "monitoring"})
"""Stages whose tables may hold what users typed, from the trace to the tokens of a harvested seed:
only their owner may read the files."""
