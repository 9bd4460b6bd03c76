//! The tables of logs that are kept.

/// `log_batches` are what nodes ship, one row a batch; a line's id is its batch's times 4,096, and its place in it, so that
/// a batch is a range of ids. Times of lines are nanoseconds since the Unix epoch, by the engine's clock.
///
/// Words are found by SQLite's FTS5 over the lines, and by a GIN index on PostgreSQL. There, row-level security would keep
/// the index from being used: a policy is judged before any operator that could tell of a row it hides. So the search runs
/// as the tables' owner, to whom all rows are open, in a function that looks at the tenant itself; whoever calls it reads
/// lines by the ids it gives, under the policies again.
pub(super) const LOGS: &str = "
CREATE TABLE log_streams (
    id {ID},
    tenant TEXT NOT NULL,
    node TEXT NOT NULL REFERENCES nodes (id),
    epoch BIGINT NOT NULL,
    through BIGINT NOT NULL,
    deleted_through BIGINT NOT NULL,
    opened_at BIGINT NOT NULL,
    UNIQUE (node, epoch)
);

CREATE TABLE log_lost_ranges (
    stream BIGINT NOT NULL REFERENCES log_streams (id),
    first_sequence BIGINT NOT NULL,
    last_sequence BIGINT NOT NULL,
    tenant TEXT NOT NULL,
    reason TEXT NOT NULL,
    reported_at BIGINT NOT NULL,
    PRIMARY KEY (stream, first_sequence)
);

CREATE TABLE log_batches (
    id {ID},
    stream BIGINT NOT NULL REFERENCES log_streams (id),
    sequence BIGINT NOT NULL,
    tenant TEXT NOT NULL,
    received_at BIGINT NOT NULL,
    -- Of all its lines' texts.
    bytes BIGINT NOT NULL
);
CREATE INDEX log_batches_tenant ON log_batches (tenant, id);

CREATE TABLE log_sources (
    id {ID},
    tenant TEXT NOT NULL,
    node TEXT NOT NULL REFERENCES nodes (id),
    stack TEXT NOT NULL,
    service TEXT NOT NULL,
    number BIGINT NOT NULL,
    UNIQUE (node, stack, service, number)
);

-- dropped: no line, but so many that were left out here by the node, written from `at` to `until`.
CREATE TABLE log_lines (
    id BIGINT PRIMARY KEY,
    tenant TEXT NOT NULL,
    source BIGINT NOT NULL REFERENCES log_sources (id),
    at BIGINT NOT NULL,
    error BIGINT NOT NULL,
    text TEXT NOT NULL,
    -- Bytes cut off the end of it.
    cut BIGINT NOT NULL,
    dropped BIGINT NOT NULL,
    until BIGINT NOT NULL
);
CREATE INDEX log_lines_tenant ON log_lines (tenant, at, id);
CREATE INDEX log_lines_source ON log_lines (source, at, id);
{SQLITE}
CREATE VIRTUAL TABLE log_words USING fts5 (
    text, content = 'log_lines', content_rowid = 'id', columnsize = 0, tokenize = 'unicode61 remove_diacritics 0'
);
CREATE TRIGGER log_lines_added AFTER INSERT ON log_lines WHEN NEW.dropped = 0
BEGIN INSERT INTO log_words (rowid, text) VALUES (NEW.id, NEW.text); END;
CREATE TRIGGER log_lines_gone AFTER DELETE ON log_lines WHEN OLD.dropped = 0
BEGIN INSERT INTO log_words (log_words, rowid, text) VALUES ('delete', OLD.id, OLD.text); END;
{END}
{POSTGRES}
-- What is between words is made spaces of: else the parser would find addresses and paths, and take each as one word.
CREATE FUNCTION log_words(text) RETURNS tsvector LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT pg_catalog.to_tsvector('pg_catalog.simple', pg_catalog.translate($1,
        E'!\"#$%&''()*+,-./:;<=>?@[\\\\]^_`{|}~', '                                '))
$$;
CREATE INDEX log_lines_words ON log_lines USING GIN (log_words(text));
CREATE POLICY owner ON log_lines TO CURRENT_USER USING (true);
CREATE FUNCTION log_find(query tsquery, since bigint, until bigint) RETURNS SETOF bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
    SELECT id FROM log_lines
    WHERE log_words(text) @@ query AND log_lines.at >= since AND log_lines.at <= $3
        AND current_setting('hyperfactory.tenant', true) IN ('*', tenant)
$$;
{END}
";

/// A hub that does not know what is stored, because the answer to its commit was lost or another hub stored it, stores nothing
/// twice. What was stored twice before stays once; 4,096 as in [`LOGS`].
pub(super) const ONCE: &str = "
CREATE INDEX log_batches_again ON log_batches (stream, sequence);
DELETE FROM log_lines WHERE id / 4096 IN (SELECT again.id FROM log_batches AS once
    JOIN log_batches AS again ON again.stream = once.stream AND again.sequence = once.sequence AND again.id > once.id);
DELETE FROM log_batches WHERE id IN (SELECT again.id FROM log_batches AS once
    JOIN log_batches AS again ON again.stream = once.stream AND again.sequence = once.sequence AND again.id > once.id);
DROP INDEX log_batches_again;
CREATE UNIQUE INDEX log_batches_sequence ON log_batches (stream, sequence);
";

/// For upkeep: a tenant's batches by age, and their bytes without a look at the rows.
pub(super) const AGE: &str = "
CREATE INDEX log_batches_age ON log_batches (tenant, received_at, id, bytes);
";
