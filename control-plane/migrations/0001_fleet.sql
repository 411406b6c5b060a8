-- Versions of models. Times are milliseconds since 1970, JSON and base64 are texts: one text for SQLite and PostgreSQL.
CREATE TABLE versions (
  model TEXT NOT NULL,
  version TEXT NOT NULL,
  digest TEXT NOT NULL,
  size_bytes BIGINT NOT NULL,
  manifest TEXT NOT NULL,
  architecture TEXT NOT NULL,
  recipe TEXT NOT NULL,
  parameters BIGINT NOT NULL,
  created BIGINT NOT NULL,
  created_by TEXT NOT NULL,
  PRIMARY KEY (model, version)
);
CREATE INDEX versions_by_digest ON versions (digest);

-- Blobs of a manifest, the manifest among them.
CREATE TABLE version_blobs (
  digest TEXT NOT NULL,
  blob TEXT NOT NULL,
  PRIMARY KEY (digest, blob)
);
CREATE INDEX version_blobs_by_blob ON version_blobs (blob);

CREATE TABLE signatures (
  digest TEXT NOT NULL,
  key_id TEXT NOT NULL,
  signature TEXT NOT NULL,
  PRIMARY KEY (digest, key_id)
);

CREATE TABLE aliases (
  model TEXT NOT NULL,
  alias TEXT NOT NULL,
  version TEXT NOT NULL,
  PRIMARY KEY (model, alias)
);

-- A removed gateway keeps its row, so that its generation never goes back.
CREATE TABLE gateways (
  id TEXT NOT NULL PRIMARY KEY,
  labels TEXT NOT NULL,
  admission TEXT NOT NULL,
  joined BIGINT NOT NULL,
  enrolment BIGINT NOT NULL,
  removed BIGINT,
  last_seen BIGINT,
  facts TEXT,
  versions TEXT,
  serial TEXT NOT NULL,
  not_after BIGINT NOT NULL,
  generation BIGINT NOT NULL,
  acknowledged_sequence BIGINT NOT NULL,
  link_replica TEXT,
  link_epoch BIGINT NOT NULL,
  link_since BIGINT NOT NULL
);

CREATE TABLE certificates (
  serial TEXT NOT NULL PRIMARY KEY,
  gateway TEXT,
  not_after BIGINT NOT NULL,
  revoked BIGINT
);
CREATE INDEX certificates_by_gateway ON certificates (gateway);

-- Sequences begin anew when a gateway joins again.
CREATE TABLE transitions (
  gateway TEXT NOT NULL,
  enrolment BIGINT NOT NULL,
  sequence BIGINT NOT NULL,
  at BIGINT NOT NULL,
  model TEXT NOT NULL,
  digest TEXT NOT NULL,
  from_phase TEXT NOT NULL,
  to_phase TEXT NOT NULL,
  reason TEXT NOT NULL,
  generation BIGINT NOT NULL,
  verdicts TEXT NOT NULL,
  rollout TEXT,
  received BIGINT NOT NULL,
  PRIMARY KEY (gateway, enrolment, sequence)
);
CREATE INDEX transitions_by_time ON transitions (received);

CREATE TABLE rollouts (
  id TEXT NOT NULL PRIMARY KEY,
  model TEXT NOT NULL,
  digest TEXT NOT NULL,
  spec TEXT NOT NULL,
  created BIGINT NOT NULL,
  created_by TEXT NOT NULL,
  generation BIGINT NOT NULL,
  is_over BIGINT NOT NULL
);

-- Immutable: a plan without its targets, and the targets that differ from its parent's.
CREATE TABLE plans (
  rollout TEXT NOT NULL,
  generation BIGINT NOT NULL,
  head TEXT NOT NULL,
  changed TEXT NOT NULL,
  PRIMARY KEY (rollout, generation)
);

-- Targets of each roll-out's current plan.
CREATE TABLE targets (
  rollout TEXT NOT NULL,
  gateway TEXT NOT NULL,
  target TEXT NOT NULL,
  previous TEXT,
  PRIMARY KEY (rollout, gateway)
);

-- Which unfinished roll-out owns a gateway. The key is what keeps two from owning one.
CREATE TABLE owners (
  gateway TEXT NOT NULL,
  model TEXT NOT NULL,
  rollout TEXT NOT NULL,
  PRIMARY KEY (gateway, model)
);
CREATE INDEX owners_by_rollout ON owners (rollout);

CREATE TABLE assignments (
  gateway TEXT NOT NULL,
  model TEXT NOT NULL,
  digest TEXT NOT NULL,
  rollout TEXT NOT NULL,
  previous TEXT,
  rolls_back BIGINT NOT NULL,
  generation BIGINT NOT NULL,
  since BIGINT NOT NULL,
  PRIMARY KEY (gateway, model)
);
CREATE INDEX assignments_by_digest ON assignments (digest);

-- Every assignment that ever was; says which roll-out a transition belongs to.
CREATE TABLE assignment_log (
  gateway TEXT NOT NULL,
  model TEXT NOT NULL,
  generation BIGINT NOT NULL,
  digest TEXT,
  rollout TEXT NOT NULL,
  since BIGINT NOT NULL,
  PRIMARY KEY (gateway, model, generation)
);

CREATE TABLE tokens (
  name TEXT NOT NULL PRIMARY KEY,
  role TEXT NOT NULL,
  hash TEXT NOT NULL UNIQUE,
  created BIGINT NOT NULL,
  ends BIGINT
);

CREATE TABLE join_tokens (
  hash TEXT NOT NULL PRIMARY KEY,
  ends BIGINT NOT NULL,
  uses BIGINT NOT NULL,
  labels TEXT NOT NULL
);

CREATE TABLE join_uses (
  hash TEXT NOT NULL,
  gateway TEXT NOT NULL,
  at BIGINT NOT NULL,
  PRIMARY KEY (hash, gateway)
);

CREATE TABLE secrets (
  name TEXT NOT NULL PRIMARY KEY,
  value TEXT NOT NULL
);

CREATE TABLE trusted_keys (
  key_id TEXT NOT NULL PRIMARY KEY,
  public_key TEXT NOT NULL,
  added BIGINT NOT NULL,
  added_by TEXT NOT NULL
);

CREATE TABLE replicas (
  id TEXT NOT NULL PRIMARY KEY,
  address TEXT NOT NULL,
  seen BIGINT NOT NULL
);

CREATE TABLE audit (
  id TEXT NOT NULL PRIMARY KEY,
  at BIGINT NOT NULL,
  actor TEXT NOT NULL,
  action TEXT NOT NULL,
  object TEXT NOT NULL,
  detail TEXT NOT NULL
);
