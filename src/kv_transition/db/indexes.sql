-- Keys and indexes of the tables with a row for every request, made when these rows are in: sorting them once costs less
-- than finding the place of each. (request_id, a hash, comes in no order.)

-- The primary keys.
CREATE UNIQUE INDEX requests_by_id ON requests (request_id);
CREATE UNIQUE INDEX responses_by_id ON responses (request_id);
CREATE UNIQUE INDEX telemetry_by_id ON telemetry (request_id);
CREATE UNIQUE INDEX scores_by_id ON scores (request_id);

CREATE UNIQUE INDEX requests_by_run ON requests (run_id, example_id, replicate);
CREATE INDEX requests_by_example ON requests (dataset_id, example_id);
CREATE INDEX runs_by_cell ON runs (dataset_id, method, budget_value);
CREATE INDEX failures_by_label ON failures (label);
