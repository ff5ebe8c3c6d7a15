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
    }
)
"""The fields of `serving.tracing.record.TraceRecord`, in its order."""

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
EVAL_EMBEDDINGS = pl.Schema(
    {
        "case_id": TEXT,
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
        "judge_id": TEXT,
        "judge_epoch": TEXT,
        "rubric_version": TEXT,
        "teacher_id": TEXT,
        "prompt_version": TEXT,
        "index_fingerprint": TEXT,
        "content_key": TEXT,
    }
)
"""`reason` is `invalid` (see `validator_verdict`), `judge_inconclusive` (see `judge_status`) or
`below_minimum_score` (see `lowest_axis`). `judge_*` is the judge in use, also where it was not
asked."""

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
        "used_fallback": FLAG,
        "model": TEXT,
        "prompt_tokens": INT,
        "completion_tokens": INT,
        "cost_usd": FLOAT,
        "retrieval_ms": FLOAT,
        "latency_ms": FLOAT,
        "error": TEXT,
    }
)
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
        "train_count": INT,
        "validation_count": INT,
        "final_validation_loss": FLOAT,
    }
)
"""`activation` and `final_validation_loss` are null where `kind` trains nothing."""

RELEASE_BUNDLE = pl.Schema(
    {
        "release_id": TEXT,
        "parent": TEXT,
        "sequence": INT,
        "phase": TEXT,
        "verdict": TEXT,
        "is_current": FLAG,
        "folder": TEXT,
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
    }
)

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
        "more_cases": INT,
    }
)

BY_KEY: Mapping[tuple[str, ...], pl.Schema] = {
    ("corpus", "pages"): PAGES,
    ("corpus", "chunks"): CHUNKS,
    ("corpus", "vector_index"): VECTOR_INDEX,
    ("traces", "trace_records"): TRACE_RECORDS,
    ("seeds", "seed_questions"): SEED_QUESTIONS,
    ("eval_set", "golden_cases"): GOLDEN_CASES,
    ("eval_set", "eval_embeddings"): EVAL_EMBEDDINGS,
    ("eval_set", "guard_recall"): GUARD_RECALL,
    ("paraphrases", "seed_clusters"): SEED_CLUSTERS,
    ("paraphrases", "paraphrases"): PARAPHRASES,
    ("paraphrases", "guarded_questions"): GUARDED_QUESTIONS,
    ("labels", "teacher_answers"): TEACHER_ANSWERS,
    ("labels", "judged_answers"): JUDGED_ANSWERS,
    ("labels", "labelled_examples"): LABELLED_EXAMPLES,
    ("labels", "rejected_examples"): REJECTED_EXAMPLES,
    ("labels", "teacher_logprobs"): TEACHER_LOGPROBS,
    ("students", "training_set"): TRAINING_SET,
    ("students", "student_adapter"): STUDENT_ADAPTER,
    ("students", "training_curve"): TRAINING_CURVE,
    ("students", "held_out_answers"): HELD_OUT_ANSWERS,
    ("students", "validation_report"): VALIDATION_REPORT,
    ("students", "calibration"): CALIBRATION,
    ("parity", "arm_answers"): ARM_ANSWERS,
    ("parity", "graded_answers"): GRADED_ANSWERS,
    ("parity", "parity_report"): PARITY_REPORT,
    ("releases", "gate_verdict"): GATE_VERDICT,
    ("releases", "release_bundle"): RELEASE_BUNDLE,
}

PRIVATE_STAGES = frozenset({"traces", "seeds", "paraphrases", "labels", "students"})
"""Stages whose tables may hold what users typed, from the trace to the tokens of a harvested seed:
only their owner may read the files."""
