-- One experiment: what was asked, what was answered, how it was scored, and what follows from it.
-- JSON TEXT columns hold JSON, BOOLEAN ones 0 or 1 (connect.py reads them as Python values). Not measured, not
-- applicable: NULL.
-- Equal inputs give equal tables, in the same order. WITHOUT ROWID: small rows that are found by their key only.
-- The keys of the tables with a row for every request, and all further indexes, are in indexes.sql.

-- The experiment, with everything needed to repeat it.
CREATE TABLE experiments (
    experiment_id TEXT PRIMARY KEY,
    settings      JSON TEXT NOT NULL,  -- the resolved configuration
    settings_hash TEXT NOT NULL,       -- SHA-256 of `settings`
    provenance    JSON TEXT NOT NULL   -- code and package versions, model and tokenizer hashes, machine
);

-- One task of a dataset, as selected for this experiment.
CREATE TABLE datasets (
    dataset_id     TEXT PRIMARY KEY,    -- <dataset>__<task>
    experiment_id  TEXT NOT NULL REFERENCES experiments (experiment_id),
    dataset        TEXT NOT NULL,
    task           TEXT NOT NULL UNIQUE,
    tokenizer      TEXT NOT NULL,       -- what counted token_len
    protocol       TEXT NOT NULL,       -- name and version of the prompts
    n_bins         INTEGER NOT NULL,
    n_per_bin      INTEGER NOT NULL,    -- examples asked for in each bin
    selection_seed INTEGER NOT NULL,
    bin_edges      JSON TEXT NOT NULL,  -- inclusive upper edges in tokens
    warnings       JSON TEXT NOT NULL   -- what a reader has to know about the selection
);

CREATE TABLE examples (
    dataset_id TEXT NOT NULL REFERENCES datasets (dataset_id),
    example_id TEXT NOT NULL,
    question   TEXT NOT NULL,
    context    TEXT NOT NULL,
    answers    JSON TEXT NOT NULL,  -- reference answers
    meta       JSON TEXT NOT NULL,  -- language, length, class names, source
    cluster_id TEXT NOT NULL,       -- examples with the same context share it
    PRIMARY KEY (dataset_id, example_id)
);

-- Length bins of a dataset, in prompt tokens, limits included; a bin emptied by ties has lower > upper.
CREATE TABLE bins (
    dataset_id       TEXT NOT NULL REFERENCES datasets (dataset_id),
    bin_idx          INTEGER NOT NULL,
    lower            INTEGER NOT NULL,
    upper            INTEGER NOT NULL,
    available        INTEGER NOT NULL,  -- eligible examples in the bin
    selected         INTEGER NOT NULL,  -- of these, in the manifest
    available_min    INTEGER,           -- token_len of the eligible ones
    available_median REAL,
    available_max    INTEGER,
    selected_min     INTEGER,           -- token_len of the selected ones
    selected_median  REAL,
    selected_max     INTEGER,
    PRIMARY KEY (dataset_id, bin_idx)
);

-- The selected examples in the order of the manifest (by length).
CREATE TABLE manifest_entries (
    dataset_id TEXT NOT NULL,
    example_id TEXT NOT NULL,
    position   INTEGER NOT NULL,
    bin_idx    INTEGER NOT NULL,
    token_len  INTEGER NOT NULL,  -- prompt tokens
    PRIMARY KEY (dataset_id, example_id),
    FOREIGN KEY (dataset_id, example_id) REFERENCES examples (dataset_id, example_id),
    FOREIGN KEY (dataset_id, bin_idx) REFERENCES bins (dataset_id, bin_idx)
);

-- A run: one task under one method and budget. `full` (whole cache) and `no_context` (empty context) have no budget.
CREATE TABLE runs (
    run_id       TEXT PRIMARY KEY,  -- <experiment>__<task>__<method>__<budget>
    dataset_id   TEXT NOT NULL REFERENCES datasets (dataset_id),
    method       TEXT NOT NULL,
    budget       TEXT NOT NULL,     -- label: "256" tokens, "f0.25" share kept, "full"
    budget_value REAL,
    scope        TEXT,              -- "prompt" or "context": what is compressed
    first_token  TEXT               -- "full" or "compressed": the cache the first answer token sees
);

-- A request: one example of a run; replicates differ in the random draw of what is evicted.
CREATE TABLE requests (
    request_id  TEXT NOT NULL,
    run_id      TEXT NOT NULL REFERENCES runs (run_id),
    dataset_id  TEXT NOT NULL,
    example_id  TEXT NOT NULL,
    replicate   INTEGER NOT NULL,
    answer_key  TEXT,              -- hash of everything that determines the answer
    prompt_hash TEXT,
    status      TEXT NOT NULL DEFAULT 'ok'  -- was there anything to ask? absent: published without a row
        CHECK (status = 'ok' OR status IN ('infeasible', 'not_applicable') OR status = 'absent'),
    protocol       TEXT,    -- name and version of the prompts
    wrapped        BOOLEAN CHECK (wrapped IN (0, 1)),  -- through the model's chat template
    dropped_tokens INTEGER, -- taken out of the prompt's middle
    excess_tokens  INTEGER, -- above the limit all the same, after tokenising the shortened prompt again
    attempts    INTEGER,
    engine      JSON TEXT,         -- what answered: class, protocol, versions
    host        TEXT,
    created     TEXT,
    FOREIGN KEY (dataset_id, example_id) REFERENCES manifest_entries (dataset_id, example_id)
);

CREATE TABLE responses (
    request_id        TEXT NOT NULL REFERENCES requests (request_id),
    text              TEXT,     -- NULL where no answer came back
    given_score       REAL,     -- the score of a published result that has no text
    finish_reason     TEXT,     -- "stop" or "length"
    prompt_tokens     INTEGER,
    completion_tokens INTEGER,  -- the end token included
    total_tokens      INTEGER,  -- as a server counts them; NULL where it does not say
    copied_from       TEXT      -- "full" where the budget took nothing away and the full answer stands for this one
);

-- KV really kept, and time spent. In a sweep (timing_scope) one prefill serves all cells of an example.
CREATE TABLE telemetry (
    request_id      TEXT NOT NULL REFERENCES requests (request_id),
    kept_mean       REAL,     -- prompt positions kept, over layers
    kept_min        REAL,
    kept_max        REAL,
    kept_per_layer  JSON TEXT,
    press_len       INTEGER,  -- positions the eviction saw
    question_tokens INTEGER,  -- positions added uncompressed behind them
    bytes_kept      INTEGER,
    peak_tokens     INTEGER,  -- kept and generated
    active          BOOLEAN CHECK (active IN (0, 1)),  -- did the budget take anything away?
    verified        TEXT,     -- "measured", "reported" or "no"
    timing_scope    TEXT,     -- "request" or "sweep"
    latency_s       REAL,
    ttfb_s          REAL,
    prefill_s       REAL,
    compress_s      REAL,
    decode_s        REAL,
    notes           TEXT      -- what happened on the way to the answer, e.g. retries
);

-- Requests with a failure label; `error` and `attempts` are those of requests that never got an answer.
CREATE TABLE failures (
    request_id TEXT PRIMARY KEY REFERENCES requests (request_id),
    label      TEXT NOT NULL,  -- TIMEOUT, ENGINE_ERROR, EMPTY_OUTPUT, REFUSAL, TRUNCATED or FORMAT_ERROR
    attempts   INTEGER,
    error      TEXT
) WITHOUT ROWID;

-- Scores from 0 to 1; NULL where no answer came back, or nothing was asked. The flags are all findings, the label is the first of them.
CREATE TABLE scores (
    request_id        TEXT NOT NULL REFERENCES requests (request_id),
    protocol          TEXT NOT NULL,  -- name and version of the prompts
    metric            TEXT NOT NULL,  -- name of the task's primary metric
    score             REAL,           -- its value
    em                REAL,
    f1                REAL,
    pred_norm         TEXT,           -- normalised answer
    gold_norm         TEXT,           -- normalised reference answer that gave the best F1
    failure           TEXT,
    flag_timeout      BOOLEAN NOT NULL CHECK (flag_timeout IN (0, 1)),
    flag_engine_error BOOLEAN NOT NULL CHECK (flag_engine_error IN (0, 1)),
    flag_empty_output BOOLEAN NOT NULL CHECK (flag_empty_output IN (0, 1)),
    flag_refusal      BOOLEAN NOT NULL CHECK (flag_refusal IN (0, 1)),
    flag_truncated    BOOLEAN NOT NULL CHECK (flag_truncated IN (0, 1)),
    flag_format_error BOOLEAN NOT NULL CHECK (flag_format_error IN (0, 1)),
    one_token         BOOLEAN NOT NULL CHECK (one_token IN (0, 1)),
    recursion_artefact BOOLEAN NOT NULL CHECK (recursion_artefact IN (0, 1))  -- LongBench's own code may give 0 here
);

-- Analysis tables: bin_idx -1 is all bins pooled; policy says how failed requests count ("zero" or "exclude").
-- Further columns of the analysis files are added behind these when a database is built.
CREATE TABLE bin_stats (
    dataset          TEXT NOT NULL REFERENCES datasets (dataset_id),
    task             TEXT NOT NULL,
    method           TEXT NOT NULL,
    bin_idx          INTEGER NOT NULL,
    budget           TEXT NOT NULL,
    budget_value     REAL,
    policy           TEXT NOT NULL,
    n                INTEGER,
    n_clusters       INTEGER,
    n_missing        INTEGER,
    n_infeasible     INTEGER,  -- of these: what is fixed in the prompt fills the budget
    n_not_applicable INTEGER,  -- of these: the method has nothing to rank by
    infeasible_frac  REAL,
    n_timeout        INTEGER,
    n_engine_error   INTEGER,
    n_empty_output   INTEGER,
    n_refusal        INTEGER,
    n_truncated      INTEGER,
    n_format_error   INTEGER,
    active_frac      REAL,
    unreliable       BOOLEAN,
    verified_frac    REAL,
    kept_min         REAL,
    kept_mean        REAL,
    kept_max         REAL,
    token_len_min    REAL,
    token_len_median REAL,
    token_len_max    REAL,
    bin_name         TEXT,  -- limits of the bin where they are not token_len
    mean             REAL,
    se               REAL,
    lo               REAL,
    hi               REAL,
    boot_lo          REAL,
    boot_hi          REAL,
    em_mean          REAL,
    f1_mean          REAL,
    protocol         TEXT,  -- name and version of the prompts
    metric           TEXT,
    length_unit      TEXT,  -- of token_len
    PRIMARY KEY (dataset, method, budget, bin_idx, policy)
);

CREATE TABLE retention (
    dataset            TEXT NOT NULL REFERENCES datasets (dataset_id),
    task               TEXT NOT NULL,
    method             TEXT NOT NULL,
    bin_idx            INTEGER NOT NULL,
    budget             TEXT NOT NULL,
    budget_value       REAL,
    policy             TEXT NOT NULL,
    n_pairs            INTEGER,
    n_clusters         INTEGER,
    active_frac        REAL,
    R                  REAL,  -- compressed over full, ratio of means
    R_lo               REAL,
    R_hi               REAL,
    status             TEXT,
    gate               TEXT,
    R0                 REAL,  -- the same above the no_context floor
    R0_lo              REAL,
    R0_hi              REAL,
    R0_status          TEXT,
    diff               REAL,  -- compressed minus full
    diff_se            REAL,
    diff_lo            REAL,
    diff_hi            REAL,
    diff_p             REAL,
    degenerate         BOOLEAN,
    ni_p               REAL,  -- non-inferiority within delta
    tost_p             REAL,  -- equivalence within delta
    delta              REAL,
    mde                REAL,
    boot_lo            REAL,
    boot_hi            REAL,
    boot_zero_den_frac REAL,
    protocol           TEXT,
    metric             TEXT,
    length_unit        TEXT,
    PRIMARY KEY (dataset, method, budget, bin_idx, policy)
);

-- The smallest budget from which retention stays at or above tau. T_* are labels ("64", "<=16", ">512").
CREATE TABLE transition_summary (
    dataset          TEXT NOT NULL REFERENCES datasets (dataset_id),
    task             TEXT NOT NULL,
    method           TEXT NOT NULL,
    bin_idx          INTEGER NOT NULL,
    policy           TEXT NOT NULL,
    tau              REAL NOT NULL,
    T_point          TEXT,
    T_lower          TEXT,
    T_upper          TEXT,
    T_point_tokens   REAL,  -- NULL where censored
    T_lower_tokens   REAL,
    T_upper_tokens   REAL,
    censored_point   TEXT,  -- "none", "left" or "right"
    censored_lower   TEXT,
    censored_upper   TEXT,
    log2_T_interp    REAL,
    T_interp         REAL,
    interp_label     TEXT,
    interp_lo        REAL,
    interp_hi        REAL,
    interp_lo_label  TEXT,
    interp_hi_label  TEXT,
    status           TEXT,
    p_upper          JSON TEXT,  -- one value per budget
    p_lower          JSON TEXT,
    budgets          JSON TEXT,
    max_decrease     REAL,
    n_pairs          INTEGER,
    token_len_median REAL,
    flags            TEXT,
    protocol         TEXT,  -- name and version of the prompts
    metric           TEXT,
    length_unit      TEXT,  -- of token_len
    PRIMARY KEY (dataset, method, bin_idx, policy, tau)
);

-- Differences between two cells on the same examples, b minus a.
CREATE TABLE paired_tests (
    dataset        TEXT NOT NULL REFERENCES datasets (dataset_id),
    task           TEXT NOT NULL,
    policy         TEXT NOT NULL,
    kind           TEXT NOT NULL,  -- "adjacent" budgets of a method, two methods ("method"), or against the "full" cache
    bin_idx        INTEGER NOT NULL,
    method_a       TEXT NOT NULL,
    budget_a       TEXT NOT NULL,
    budget_value_a REAL,
    method_b       TEXT NOT NULL,
    budget_b       TEXT NOT NULL,
    budget_value_b REAL,
    family         TEXT,  -- the tests among which p was adjusted
    n_pairs        INTEGER,
    diff           REAL,
    diff_lo        REAL,
    diff_hi        REAL,
    p              REAL,
    p_adjusted     REAL,
    adjustment     TEXT,  -- "holm", or "bh" where exploratory
    mde            REAL,
    status         TEXT,
    PRIMARY KEY (dataset, kind, bin_idx, method_a, budget_a, method_b, budget_b, policy)
);

-- The smallest budget from which on a method is shown to lose less than delta.
CREATE TABLE lossless (
    dataset           TEXT NOT NULL REFERENCES datasets (dataset_id),
    task              TEXT NOT NULL,
    method            TEXT NOT NULL,
    bin_idx           INTEGER NOT NULL,
    policy            TEXT NOT NULL,
    delta             REAL,
    smallest_lossless TEXT,  -- NULL where none is shown; status says why
    status            TEXT,
    mde               REAL,
    n_needed          REAL,  -- examples at which the spread seen here would show it
    PRIMARY KEY (dataset, method, bin_idx, policy)
);

-- Terms of the fitted models: the exponent of prompt length (collapse), effects of budget, length and method (gee).
CREATE TABLE effect_models (
    dataset  TEXT NOT NULL REFERENCES datasets (dataset_id),
    task     TEXT NOT NULL,
    policy   TEXT NOT NULL,
    model    TEXT NOT NULL,
    method   TEXT NOT NULL,  -- "" for a model of all methods
    term     TEXT NOT NULL,
    estimate REAL,
    se       REAL,
    lo       REAL,
    hi       REAL,
    p        REAL,
    status   TEXT,
    label    TEXT,
    PRIMARY KEY (dataset, policy, model, method, term)
);

-- Means over tasks, every task with the same weight.
CREATE TABLE macro (
    method       TEXT NOT NULL,
    budget       TEXT NOT NULL,
    budget_value REAL,
    policy       TEXT NOT NULL,
    n_tasks      INTEGER,
    mean         REAL,
    lo           REAL,
    hi           REAL,
    R            REAL,  -- ratio of the means over tasks
    R_lo         REAL,
    R_hi         REAL,
    status       TEXT,
    PRIMARY KEY (method, budget, policy)
);

-- Time, tokens and bytes of a cell's requests; failed ones are counted and not timed.
CREATE TABLE costs (
    dataset         TEXT NOT NULL REFERENCES datasets (dataset_id),
    task            TEXT NOT NULL,
    method          TEXT NOT NULL,
    bin_idx         INTEGER NOT NULL,
    budget          TEXT NOT NULL,
    budget_value    REAL,
    n               INTEGER,
    n_failed        INTEGER,
    n_copied        INTEGER,  -- copied from the full cache's answer: no request of their own
    latency_median  REAL,  -- seconds
    ttfb_median     REAL,  -- seconds
    bytes_kept_mean REAL,
    timing_scope    TEXT,
    status          TEXT,
    PRIMARY KEY (dataset, method, budget, bin_idx)
);

-- How far scores move when only the arithmetic of the full cache changes; empty where all was computed in float32.
CREATE TABLE noise_floor (
    dataset          TEXT PRIMARY KEY REFERENCES datasets (dataset_id),
    task             TEXT NOT NULL,
    dtype            TEXT NOT NULL,  -- number format of the computation
    attention        TEXT NOT NULL,  -- implementation of attention in the run
    other_attention  TEXT NOT NULL,  -- and the one that answered a second time
    n                INTEGER,        -- examples compared
    n_failed         INTEGER,        -- left out, one of the two has no answer
    n_changed        INTEGER,        -- answers that differ
    changed_share    REAL,
    mean_score       REAL,
    mean_score_other REAL,
    mean_diff        REAL,           -- other minus run's
    mean_abs_diff    REAL,           -- mean over examples
    R                REAL,           -- retention of the full cache against itself
    status           TEXT NOT NULL   -- "ok", or why there are no numbers
);

-- Every scored answer with its run, example and KV use: the flat table most questions start from.
CREATE VIEW scored_answers AS
SELECT requests.request_id, runs.run_id, datasets.dataset_id, datasets.task, runs.method, runs.budget,
       runs.budget_value, requests.replicate, requests.example_id, manifest_entries.bin_idx,
       manifest_entries.token_len, examples.cluster_id, scores.metric, scores.score, scores.em, scores.f1,
       requests.status, scores.failure, responses.text, responses.finish_reason, responses.completion_tokens, telemetry.kept_mean,
       telemetry.bytes_kept, telemetry.active, telemetry.verified
FROM scores
JOIN requests USING (request_id)
JOIN responses USING (request_id)
JOIN telemetry USING (request_id)
JOIN runs ON runs.run_id = requests.run_id
JOIN datasets ON datasets.dataset_id = requests.dataset_id
JOIN manifest_entries
  ON manifest_entries.dataset_id = requests.dataset_id AND manifest_entries.example_id = requests.example_id
JOIN examples ON examples.dataset_id = requests.dataset_id AND examples.example_id = requests.example_id;
