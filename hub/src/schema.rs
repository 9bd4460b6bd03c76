//! The hub's tables, step by step. Everything belongs to a tenant; secrets stand here only as hashes.

mod logs;

use store::Migration;

/// All steps, oldest first. A released step is never altered.
pub const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "tenants, trust, telemetry, alerts, commands, audit, access", sql: FIRST },
    Migration { version: 2, name: "kept logs", sql: logs::LOGS },
    Migration { version: 3, name: "access at Kafka brokers", sql: KAFKA_ACCESS },
    Migration { version: 4, name: "what rollouts know of their nodes", sql: ROLLOUT_NODES },
    Migration { version: 5, name: "kept logs once", sql: logs::ONCE },
    Migration { version: 6, name: "kept logs by age", sql: logs::AGE },
    Migration { version: 7, name: "alerts by node, by tenant and by their end", sql: ALERTS },
];

/// Lists are by number. Those that are open have no end, which an index by it finds too.
const ALERTS: &str = "
CREATE INDEX alerts_node ON alerts (node, id);
DROP INDEX alerts_tenant;
CREATE INDEX alerts_tenant ON alerts (tenant, id);
CREATE INDEX alerts_closed ON alerts (closed_at, id);
";

const ROLLOUT_NODES: &str = "
-- It had a session when its command was made.
ALTER TABLE rollout_nodes ADD COLUMN was_there BIGINT NOT NULL DEFAULT 0;
UPDATE rollout_nodes SET was_there = was_well;
-- When it was first seen that its command was handed over, by the steady clock.
ALTER TABLE rollout_nodes ADD COLUMN told_at BIGINT;
-- Until when it may be asked again when it was away, by the steady clock.
ALTER TABLE rollout_nodes ADD COLUMN open_until BIGINT;
";

/// What bridges may do at their tenants' brokers, one row a bridge: topics with blanks between, none for a bridge that may do
/// nothing any more. state: waiting, asked (the command is to bring about asked_revision), placed, refused (until retry_at).
const KAFKA_ACCESS: &str = "
CREATE TABLE kafka_access (
    node TEXT PRIMARY KEY REFERENCES nodes (id),
    tenant TEXT NOT NULL REFERENCES tenants (id),
    topics TEXT NOT NULL,
    revision BIGINT NOT NULL,
    state TEXT NOT NULL,
    command TEXT,
    asked_revision BIGINT NOT NULL,
    tries BIGINT NOT NULL,
    retry_at BIGINT NOT NULL,
    message TEXT NOT NULL,
    changed_at BIGINT NOT NULL
);
CREATE INDEX kafka_access_changed ON kafka_access (changed_at);
CREATE INDEX kafka_access_open ON kafka_access (changed_at) WHERE state <> 'placed';
INSERT INTO kafka_access (node, tenant, topics, revision, state, asked_revision, tries, retry_at, message, changed_at)
SELECT node, tenant, '', 1, 'waiting', 0, 0, 0, '', MAX(queued_at) FROM kafka_acl_removals
WHERE done_at IS NULL GROUP BY node, tenant;
DROP TABLE kafka_acl_removals;
";

/// Times are milliseconds since the Unix epoch, ids are UUIDs in hyphenated text, a spool epoch is the 64 bits of
/// the wire read as a signed number. A row that is a tenant's has its id in the column `tenant`, by which PostgreSQL
/// keeps tenants apart (see `store/src/tenancy.rs`): without that column, a table is the fleet's alone.
const FIRST: &str = "
CREATE TABLE tenants (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

-- How the master key is had; the key itself is not here. kind: file, passphrase (parameters: costs and salt), command
-- (parameters: what it gave for the key). One row: what changes its id moves all data keys.
CREATE TABLE master_key (
    slot BIGINT PRIMARY KEY CHECK (slot = 1),
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    parameters {BLOB} NOT NULL,
    created_at BIGINT NOT NULL
);

-- owner: fleet, or tenant/<id>. Deleting a row makes all that it sealed unreadable for ever.
CREATE TABLE data_keys (
    owner TEXT PRIMARY KEY,
    tenant TEXT REFERENCES tenants (id),
    wrapped {BLOB} NOT NULL,
    master TEXT NOT NULL REFERENCES master_key (id) ON UPDATE CASCADE,
    created_at BIGINT NOT NULL
);

-- kind: root, hub (its intermediate), nodes (a tenant's intermediate), kafka (a tenant's own root),
-- web (of the hub's own HTTPS). Generations count from 1 within kind and tenant. The key is sealed with its owner's data key; a root that is kept offline has none here.
-- state:
--   awaiting-signature  has a key and no certificate: the fleet root is offline and has to sign it
--   pending             has a certificate, and nobody has been told of it
--   trusted             given out as one to trust, and issues nothing: a successor before its turn, or a predecessor after it
--   active              issues; at most one of its kind and tenant
--   retired             neither issues nor is given out any more
CREATE TABLE authorities (
    id {ID},
    kind TEXT NOT NULL,
    tenant TEXT REFERENCES tenants (id),
    generation BIGINT NOT NULL,
    state TEXT NOT NULL,
    spki_sha256 {BLOB} NOT NULL,
    certificate {BLOB},
    sealed_key {BLOB},
    not_after BIGINT,
    created_at BIGINT NOT NULL,
    -- The root that signed it; of a root, nothing.
    issuer BIGINT REFERENCES authorities (id),
    -- The rotation that retired it.
    retired_by BIGINT,
    -- Of a root that is kept offline: what it has signed ahead.
    revocation_list {BLOB}
);
-- Links between fleet roots: the name and key of one (introduced) under the signature of another (signer). Those of
-- which nodes are told (1) serve while they are valid, for nodes that were away.
CREATE TABLE root_links (
    serial {BLOB} PRIMARY KEY,
    signer BIGINT NOT NULL REFERENCES authorities (id),
    introduced BIGINT NOT NULL REFERENCES authorities (id),
    told BIGINT NOT NULL,
    certificate {BLOB} NOT NULL,
    not_after BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

-- From one authority to its successor, in phases: prepare, trust, issue, retire, done; or aborted. Of each kind and tenant
-- one at most is open. renew_within: nodes are still to be advised to renew, within so many milliseconds.
CREATE TABLE rotations (
    id {ID},
    kind TEXT NOT NULL,
    tenant TEXT REFERENCES tenants (id),
    old_authority BIGINT NOT NULL REFERENCES authorities (id),
    new_authority BIGINT NOT NULL REFERENCES authorities (id),
    phase TEXT NOT NULL,
    reason TEXT NOT NULL,
    started_by TEXT NOT NULL,
    started_at BIGINT NOT NULL,
    ended_at BIGINT,
    renew_within BIGINT
);
CREATE UNIQUE INDEX rotations_open ON rotations (kind, COALESCE(tenant, '')) WHERE ended_at IS NULL;
CREATE TABLE rotation_steps (
    id {ID},
    rotation BIGINT NOT NULL REFERENCES rotations (id),
    tenant TEXT REFERENCES tenants (id),
    phase TEXT NOT NULL,
    at BIGINT NOT NULL,
    by_whom TEXT NOT NULL,
    -- Nodes and certificates that were not ready for it.
    left_behind BIGINT NOT NULL
);
CREATE INDEX rotation_steps_rotation ON rotation_steps (rotation, id);

CREATE UNIQUE INDEX authorities_generation ON authorities (kind, COALESCE(tenant, ''), generation);
CREATE UNIQUE INDEX authorities_awaiting ON authorities (kind, COALESCE(tenant, '')) WHERE state = 'awaiting-signature';
CREATE UNIQUE INDEX authorities_active ON authorities (kind, COALESCE(tenant, '')) WHERE state = 'active';

-- How long certificates of a kind live, seconds, and between which shares of their life they are renewed, percent. For a
-- tenant, or for the fleet where there is none; what is not here is as the hub has it by default.
CREATE TABLE certificate_policies (
    tenant TEXT REFERENCES tenants (id),
    kind TEXT NOT NULL,
    lifetime_seconds BIGINT NOT NULL,
    renew_from BIGINT NOT NULL,
    renew_until BIGINT NOT NULL,
    changed_at BIGINT NOT NULL,
    changed_by TEXT NOT NULL
);
CREATE UNIQUE INDEX certificate_policies_place ON certificate_policies (COALESCE(tenant, ''), kind);

CREATE TABLE nodes (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL REFERENCES tenants (id),
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    software TEXT NOT NULL,
    enrolled_at BIGINT NOT NULL,
    revoked_at BIGINT,
    removed_at BIGINT,
    -- Two nodes have its key: neither may connect.
    frozen_at BIGINT,
    frozen_reason TEXT,
    -- The fleet roots it said it trusts, SHA-256 after SHA-256 of their public keys, and why not those it was told to.
    roots {BLOB},
    roots_trouble TEXT,
    -- Advice: when to renew, while it uses a certificate up to this number.
    renew_at BIGINT,
    renew_through BIGINT,
    -- The same of a bridge's Kafka certificate, while it uses one that was issued until then.
    kafka_renew_at BIGINT,
    kafka_renew_before BIGINT
);
CREATE UNIQUE INDEX nodes_name ON nodes (tenant, name) WHERE removed_at IS NULL;

CREATE TABLE node_labels (
    node TEXT NOT NULL REFERENCES nodes (id),
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (node, name)
);
CREATE INDEX node_labels_value ON node_labels (name, value);

CREATE TABLE join_tokens (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL REFERENCES tenants (id),
    kind TEXT NOT NULL,
    name TEXT,
    secret_hash {BLOB} NOT NULL UNIQUE,
    -- SHA-256 of the public key of the fleet root it names.
    root_pin {BLOB} NOT NULL,
    created_at BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    expires_at BIGINT NOT NULL,
    used_at BIGINT,
    used_spki {BLOB},
    node TEXT REFERENCES nodes (id)
);
CREATE INDEX join_tokens_tenant ON join_tokens (tenant, created_at);

-- kind: agent, bridge (both a node's identity), kafka-client (a bridge's), kafka-server (a tenant's brokers'), hub-server.
-- state: issued, active (a session has used it), retired (a session has used its successor), revoked.
CREATE TABLE certificates (
    serial {BLOB} NOT NULL,
    authority BIGINT NOT NULL REFERENCES authorities (id),
    kind TEXT NOT NULL,
    tenant TEXT REFERENCES tenants (id),
    node TEXT REFERENCES nodes (id),
    spki_sha256 {BLOB} NOT NULL,
    certificate {BLOB} NOT NULL,
    issued_at BIGINT NOT NULL,
    not_after BIGINT NOT NULL,
    superseded_at BIGINT,
    state TEXT NOT NULL,
    -- Of a node's identity: its number, from 1 on, and whether it was given for recovery.
    sequence BIGINT,
    recovered BIGINT,
    PRIMARY KEY (authority, serial)
);
CREATE INDEX certificates_node ON certificates (node, issued_at);
CREATE INDEX certificates_spki ON certificates (spki_sha256);

-- Keys of the hub's newest server certificates (kind as there), sealed with the fleet's data key, so that a hub that starts
-- need not issue one.
CREATE TABLE server_keys (
    kind TEXT PRIMARY KEY,
    authority BIGINT NOT NULL,
    serial {BLOB} NOT NULL,
    sealed_key {BLOB} NOT NULL
);

-- The denylist: by issuer and serial, and by key. Rows stay for as long as the certificate would have been valid.
CREATE TABLE revocations (
    authority BIGINT NOT NULL REFERENCES authorities (id),
    serial {BLOB} NOT NULL,
    spki_sha256 {BLOB} NOT NULL,
    tenant TEXT NOT NULL,
    node TEXT NOT NULL REFERENCES nodes (id),
    reason TEXT NOT NULL,
    revoked_at BIGINT NOT NULL,
    not_after BIGINT NOT NULL,
    PRIMARY KEY (authority, serial)
);
CREATE INDEX revocations_spki ON revocations (spki_sha256);

-- Rights at a tenant's broker that a revoked bridge still has there.
CREATE TABLE kafka_acl_removals (
    id {ID},
    tenant TEXT NOT NULL REFERENCES tenants (id),
    node TEXT NOT NULL REFERENCES nodes (id),
    queued_at BIGINT NOT NULL,
    done_at BIGINT
);

-- One life of a node's spool. Everything up to `through` is accounted for: stored, or named in lost_ranges, or
-- (up to `deleted_through`) deleted by retention.
CREATE TABLE streams (
    id {ID},
    tenant TEXT NOT NULL,
    node TEXT NOT NULL REFERENCES nodes (id),
    epoch BIGINT NOT NULL,
    through BIGINT NOT NULL,
    deleted_through BIGINT NOT NULL,
    opened_at BIGINT NOT NULL,
    UNIQUE (node, epoch)
);

-- key_sequence: the key batch from which this one decodes; 0: none is known, it can't be decoded.
CREATE TABLE batches (
    stream BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    tenant TEXT NOT NULL,
    key_sequence BIGINT NOT NULL,
    first_at BIGINT NOT NULL,
    last_at BIGINT NOT NULL,
    received_at BIGINT NOT NULL,
    body {BLOB} NOT NULL,
    PRIMARY KEY (stream, sequence)
) {CLUSTERED};

-- Batches without a hole from a key batch on, each body after its length as a LEB128 varint.
CREATE TABLE chunks (
    stream BIGINT NOT NULL,
    first_sequence BIGINT NOT NULL,
    last_sequence BIGINT NOT NULL,
    tenant TEXT NOT NULL,
    first_at BIGINT NOT NULL,
    last_at BIGINT NOT NULL,
    received_at BIGINT NOT NULL,
    bodies {BLOB} NOT NULL,
    PRIMARY KEY (stream, first_sequence)
);
CREATE INDEX chunks_received ON chunks (received_at);
CREATE INDEX chunks_time ON chunks (stream, last_at);

CREATE TABLE lost_ranges (
    stream BIGINT NOT NULL REFERENCES streams (id),
    first_sequence BIGINT NOT NULL,
    last_sequence BIGINT NOT NULL,
    tenant TEXT NOT NULL,
    reason TEXT NOT NULL,
    reported_at BIGINT NOT NULL,
    PRIMARY KEY (stream, first_sequence)
);

-- presence: online, lost, left. facts and state are the wire's NodeFacts and (key) BatchBody.
CREATE TABLE node_states (
    node TEXT PRIMARY KEY REFERENCES nodes (id),
    tenant TEXT NOT NULL,
    presence TEXT NOT NULL,
    since BIGINT NOT NULL,
    last_seen BIGINT NOT NULL,
    remote TEXT,
    facts {BLOB} NOT NULL,
    state_at BIGINT NOT NULL,
    state {BLOB} NOT NULL
);

CREATE TABLE alerts (
    id {ID},
    -- Of an authority there is no node, and of the fleet's no tenant.
    tenant TEXT REFERENCES tenants (id),
    node TEXT REFERENCES nodes (id),
    rule TEXT NOT NULL,
    subject TEXT NOT NULL,
    severity TEXT NOT NULL,
    message TEXT NOT NULL,
    opened_at BIGINT NOT NULL,
    closed_at BIGINT
);
CREATE UNIQUE INDEX alerts_open ON alerts (COALESCE(node, ''), COALESCE(tenant, ''), rule, subject) WHERE closed_at IS NULL;
CREATE INDEX alerts_tenant ON alerts (tenant, opened_at);

-- What somebody asked for: one action, for one node or many. With the key that the caller gave, it can be asked for again
-- without another effect, also after a restart. tenant: the only one the requester acts for.
CREATE TABLE command_requests (
    id TEXT PRIMARY KEY,
    tenant TEXT REFERENCES tenants (id),
    caller TEXT NOT NULL,
    idempotency_key TEXT,
    fingerprint {BLOB} NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX command_requests_key ON command_requests (caller, idempotency_key);

-- state: queued, delivered, running, succeeded, failed, expired, cancelled, unknown (see protocol/src/command/hub.rs).
-- arguments is the wire's Action, byte for byte as it is sent. deadline is of the steady clock (commands/clock.rs), all other
-- times are of the wall clock. told_at: the node has told the end, which then stands; without it, an end is the hub's judgement.
CREATE TABLE commands (
    id TEXT PRIMARY KEY,
    request TEXT NOT NULL REFERENCES command_requests (id),
    tenant TEXT NOT NULL REFERENCES tenants (id),
    node TEXT NOT NULL REFERENCES nodes (id),
    action TEXT NOT NULL,
    arguments {BLOB} NOT NULL,
    priority BIGINT NOT NULL,
    reason TEXT NOT NULL,
    requested_by TEXT NOT NULL,
    state TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    deadline BIGINT NOT NULL,
    delivered_at BIGINT,
    started_at BIGINT,
    ended_at BIGINT,
    cancelled_by TEXT,
    -- An operator's signature, for the node to judge: the public key, the signature, and until when it counts.
    signer {BLOB},
    signature {BLOB},
    signed_until BIGINT,
    told_at BIGINT,
    refused BIGINT NOT NULL DEFAULT 0,
    message TEXT NOT NULL DEFAULT '',
    output_bytes BIGINT NOT NULL DEFAULT 0,
    output_dropped BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX commands_node ON commands (node, id);
CREATE INDEX commands_tenant ON commands (tenant, id);
CREATE INDEX commands_request ON commands (request);
CREATE INDEX commands_created ON commands (created_at);
CREATE INDEX commands_due ON commands (node)
    WHERE told_at IS NULL AND state IN ('queued', 'delivered', 'running', 'unknown');
CREATE INDEX commands_deadline ON commands (deadline) WHERE state IN ('queued', 'delivered', 'running');

-- Keys of people who sign commands. What they sign is judged by the nodes that pin their keys; here it is known whose they are.
-- tenant: the only one whose nodes they may sign for.
CREATE TABLE operator_keys (
    id TEXT PRIMARY KEY,
    tenant TEXT REFERENCES tenants (id),
    name TEXT NOT NULL,
    public_key {BLOB} NOT NULL UNIQUE,
    created_at BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    revoked_at BIGINT
);

CREATE TABLE command_outputs (
    command TEXT NOT NULL,
    start BIGINT NOT NULL,
    tenant TEXT NOT NULL,
    data {BLOB} NOT NULL,
    PRIMARY KEY (command, start)
);

-- The same command over many nodes, in waves (see rollouts/plan.rs). tenant: whose nodes all of them are. state: running,
-- paused, halted, aborted, done. arguments is the wire's Action. Durations are seconds, shares percent. soaking_since and
-- asked_at are of the steady clock (commands/clock.rs), all other times are of the wall clock.
CREATE TABLE rollouts (
    id {ID},
    tenant TEXT REFERENCES tenants (id),
    caller TEXT NOT NULL,
    idempotency_key TEXT,
    fingerprint {BLOB} NOT NULL,
    action TEXT NOT NULL,
    arguments {BLOB} NOT NULL,
    priority BIGINT NOT NULL,
    valid_for BIGINT NOT NULL,
    target TEXT NOT NULL,
    reason TEXT NOT NULL,
    started_by TEXT NOT NULL,
    started_at BIGINT NOT NULL,
    ended_at BIGINT,
    waves TEXT NOT NULL,
    rate BIGINT,
    windows TEXT NOT NULL,
    settle BIGINT NOT NULL,
    soak BIGINT NOT NULL,
    most_failed BIGINT NOT NULL,
    most_regressed BIGINT NOT NULL,
    state TEXT NOT NULL,
    wave BIGINT NOT NULL,
    wave_count BIGINT NOT NULL,
    soaking_since BIGINT,
    -- Why it stands as it does, and since when and by whom.
    why TEXT NOT NULL,
    changed_at BIGINT NOT NULL,
    changed_by TEXT NOT NULL
);
CREATE UNIQUE INDEX rollouts_key ON rollouts (caller, idempotency_key);
CREATE INDEX rollouts_running ON rollouts (id) WHERE state = 'running';

-- state: pending (not asked yet), skipped, or that of its command, which is kept here for when the command is not any more.
CREATE TABLE rollout_nodes (
    rollout BIGINT NOT NULL REFERENCES rollouts (id),
    place BIGINT NOT NULL,
    node TEXT NOT NULL REFERENCES nodes (id),
    tenant TEXT NOT NULL REFERENCES tenants (id),
    wave BIGINT NOT NULL,
    state TEXT NOT NULL,
    command TEXT,
    asked_at BIGINT,
    -- It was well when its command was made.
    was_well BIGINT NOT NULL DEFAULT 0,
    -- Somebody let the rollout go on, whatever is wrong with it.
    accepted BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (rollout, node)
);
CREATE UNIQUE INDEX rollout_nodes_command ON rollout_nodes (command);
CREATE INDEX rollout_nodes_open ON rollout_nodes (command) WHERE state IN ('queued', 'delivered', 'running', 'unknown');

-- A chain (see audit/chain.md): each entry's hash covers its columns and the hash before it. audit_head is the one
-- place numbers come from, and holds the newest entry's hash. Both refuse to be rewritten.
CREATE TABLE audit (
    id BIGINT PRIMARY KEY,
    at BIGINT NOT NULL,
    actor TEXT NOT NULL,
    credential TEXT,
    action TEXT NOT NULL,
    tenant TEXT,
    subject TEXT NOT NULL,
    detail TEXT NOT NULL,
    remote TEXT,
    previous {BLOB} NOT NULL,
    hash {BLOB} NOT NULL
);
CREATE INDEX audit_tenant ON audit (tenant, id);
CREATE TABLE audit_head (
    chain BIGINT PRIMARY KEY,
    last_id BIGINT NOT NULL,
    hash {BLOB} NOT NULL
);
{SQLITE}
INSERT INTO audit_head (chain, last_id, hash) VALUES (1, 0, zeroblob(32));
CREATE TRIGGER audit_follows BEFORE INSERT ON audit
WHEN NOT EXISTS (SELECT 1 FROM audit_head WHERE chain = 1 AND last_id = NEW.id - 1 AND hash = NEW.previous)
BEGIN SELECT RAISE(ABORT, 'an audit entry follows the one before it'); END;
CREATE TRIGGER audit_moves_head AFTER INSERT ON audit
BEGIN UPDATE audit_head SET last_id = NEW.id, hash = NEW.hash WHERE chain = 1; END;
CREATE TRIGGER audit_stays BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_keeps BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_head_is_one BEFORE INSERT ON audit_head
BEGIN SELECT RAISE(ABORT, 'the audit log has one head'); END;
CREATE TRIGGER audit_head_keeps BEFORE DELETE ON audit_head
BEGIN SELECT RAISE(ABORT, 'the audit log has one head'); END;
CREATE TRIGGER audit_head_follows BEFORE UPDATE ON audit_head
WHEN NEW.chain <> OLD.chain OR NEW.last_id <> OLD.last_id + 1
    OR NOT EXISTS (SELECT 1 FROM audit WHERE id = NEW.last_id AND hash = NEW.hash)
BEGIN SELECT RAISE(ABORT, 'the audit log''s head follows its newest entry'); END;
{END}
{POSTGRES}
INSERT INTO audit_head (chain, last_id, hash) VALUES (1, 0, decode(repeat('00', 32), 'hex'));
CREATE FUNCTION audit_moves_head() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE audit_head SET last_id = NEW.id, hash = NEW.hash
    WHERE chain = 1 AND last_id = NEW.id - 1 AND hash = NEW.previous;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'an audit entry follows the one before it' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE FUNCTION audit_head_follows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.chain <> OLD.chain OR NEW.last_id <> OLD.last_id + 1
        OR NOT EXISTS (SELECT 1 FROM audit WHERE id = NEW.last_id AND hash = NEW.hash) THEN
        RAISE EXCEPTION 'the audit log''s head follows its newest entry'
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE FUNCTION audit_refuses() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only' USING ERRCODE = 'integrity_constraint_violation';
END $$;
-- Shared by all tenants, and published anyway: who appends for one tenant follows the entry of another.
CREATE POLICY everybody ON audit_head USING (true);
CREATE TRIGGER audit_moves_head AFTER INSERT ON audit FOR EACH ROW EXECUTE FUNCTION audit_moves_head();
CREATE TRIGGER audit_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON audit EXECUTE FUNCTION audit_refuses();
CREATE TRIGGER audit_head_is_one BEFORE INSERT OR DELETE OR TRUNCATE ON audit_head EXECUTE FUNCTION audit_refuses();
CREATE TRIGGER audit_head_follows BEFORE UPDATE ON audit_head FOR EACH ROW EXECUTE FUNCTION audit_head_follows();
{END}

CREATE TABLE api_tokens (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    tenant TEXT REFERENCES tenants (id),
    secret_hash {BLOB} NOT NULL UNIQUE,
    created_at BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT
);

CREATE TABLE sign_in_links (
    secret_hash {BLOB} PRIMARY KEY,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    tenant TEXT REFERENCES tenants (id),
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    used_at BIGINT
);

CREATE TABLE web_sessions (
    secret_hash {BLOB} PRIMARY KEY,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    tenant TEXT REFERENCES tenants (id),
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    api_token TEXT REFERENCES api_tokens (id)
);

CREATE TABLE hub_settings (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
";
