-- What the first release left: its schema, and rows in every table of it. Not to be changed.
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

INSERT INTO versions (model, version, digest, size_bytes, manifest, architecture, recipe, parameters, created, created_by) VALUES ('org/chat', 'v1', 'sha256:0000000000000000000000000000000000000000000000000000000000000001', 8, '{"schemaVersion": 2, "config": {"mediaType": "application/json", "digest": "sha256:00000000000000000000000000000000000000000000000000000000000003e9", "size": 2}, "layers": [{"mediaType": "a", "digest": "sha256:00000000000000000000000000000000000000000000000000000000000007d1", "size": 3}, {"mediaType": "a", "digest": "sha256:0000000000000000000000000000000000000000000000000000000000000bb8", "size": 3}]}', 'qwen2', 'w8', 7, 1, 'ada');
INSERT INTO version_blobs (digest, blob) VALUES ('sha256:0000000000000000000000000000000000000000000000000000000000000001', 'sha256:0000000000000000000000000000000000000000000000000000000000000001');
INSERT INTO version_blobs (digest, blob) VALUES ('sha256:0000000000000000000000000000000000000000000000000000000000000001', 'sha256:00000000000000000000000000000000000000000000000000000000000003e9');
INSERT INTO version_blobs (digest, blob) VALUES ('sha256:0000000000000000000000000000000000000000000000000000000000000001', 'sha256:00000000000000000000000000000000000000000000000000000000000007d1');
INSERT INTO version_blobs (digest, blob) VALUES ('sha256:0000000000000000000000000000000000000000000000000000000000000001', 'sha256:0000000000000000000000000000000000000000000000000000000000000bb8');
INSERT INTO versions (model, version, digest, size_bytes, manifest, architecture, recipe, parameters, created, created_by) VALUES ('org/chat', 'v2', 'sha256:0000000000000000000000000000000000000000000000000000000000000002', 8, '{"schemaVersion": 2, "config": {"mediaType": "application/json", "digest": "sha256:00000000000000000000000000000000000000000000000000000000000003ea", "size": 2}, "layers": [{"mediaType": "a", "digest": "sha256:00000000000000000000000000000000000000000000000000000000000007d2", "size": 3}, {"mediaType": "a", "digest": "sha256:0000000000000000000000000000000000000000000000000000000000000bb8", "size": 3}]}', 'qwen2', 'w8', 7, 2, 'ada');
INSERT INTO version_blobs (digest, blob) VALUES ('sha256:0000000000000000000000000000000000000000000000000000000000000002', 'sha256:0000000000000000000000000000000000000000000000000000000000000002');
INSERT INTO version_blobs (digest, blob) VALUES ('sha256:0000000000000000000000000000000000000000000000000000000000000002', 'sha256:00000000000000000000000000000000000000000000000000000000000003ea');
INSERT INTO version_blobs (digest, blob) VALUES ('sha256:0000000000000000000000000000000000000000000000000000000000000002', 'sha256:00000000000000000000000000000000000000000000000000000000000007d2');
INSERT INTO version_blobs (digest, blob) VALUES ('sha256:0000000000000000000000000000000000000000000000000000000000000002', 'sha256:0000000000000000000000000000000000000000000000000000000000000bb8');
INSERT INTO signatures (digest, key_id, signature) VALUES ('sha256:0000000000000000000000000000000000000000000000000000000000000002', 'k1', 'BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBw==');
INSERT INTO aliases (model, alias, version) VALUES ('org/chat', 'stable', 'v2');
INSERT INTO gateways (id, labels, admission, joined, enrolment, removed, last_seen, facts, versions, serial, not_after, generation, acknowledged_sequence, link_replica, link_epoch, link_since) VALUES ('gw-0', '{"site":"berlin"}', 'cordoned', 1000, 1, NULL, 60, '{}', '[]', 'serial-0', 9000, 2, 2, 'replica', 3, 50);
INSERT INTO certificates (serial, gateway, not_after, revoked) VALUES ('serial-0', 'gw-0', 9000, NULL);
INSERT INTO gateways (id, labels, admission, joined, enrolment, removed, last_seen, facts, versions, serial, not_after, generation, acknowledged_sequence, link_replica, link_epoch, link_since) VALUES ('gw-1', '{"site":"berlin"}', 'open', 1000, 1, NULL, NULL, NULL, NULL, 'serial-1', 9000, 1, 0, NULL, 0, 0);
INSERT INTO certificates (serial, gateway, not_after, revoked) VALUES ('serial-1', 'gw-1', 9000, NULL);
INSERT INTO gateways (id, labels, admission, joined, enrolment, removed, last_seen, facts, versions, serial, not_after, generation, acknowledged_sequence, link_replica, link_epoch, link_since) VALUES ('gw-2', '{"site":"berlin"}', 'open', 1000, 1, 70, NULL, NULL, NULL, 'serial-2', 9000, 5, 0, NULL, 0, 0);
INSERT INTO certificates (serial, gateway, not_after, revoked) VALUES ('serial-2', 'gw-2', 9000, 70);
INSERT INTO rollouts (id, model, digest, spec, created, created_by, generation, is_over) VALUES ('00000000000000000000000000000001', 'org/chat', 'sha256:0000000000000000000000000000000000000000000000000000000000000001', '{"model": "org/chat", "version": "v1", "digest": "sha256:0000000000000000000000000000000000000000000000000000000000000001", "selector": "site=berlin", "waves": [{"count": 1}, {"percent": 100.0}], "soak": {"secs": 600, "nanos": 0}, "max-failed-percent": 2.0, "max-unavailable-percent": 20.0, "windows": [], "manual-approval": false, "gateway-timeout": {"secs": 7200, "nanos": 0}, "gates": {"min-speed-percent": 80.0, "max-celsius": 90.0, "max-extra-error-percent": 1.0, "max-extra-ttft-percent": 50.0}}', 1, 'ada', 1, 1);
INSERT INTO rollouts (id, model, digest, spec, created, created_by, generation, is_over) VALUES ('00000000000000000000000000000002', 'org/chat', 'sha256:0000000000000000000000000000000000000000000000000000000000000002', '{"model": "org/chat", "version": "v2", "digest": "sha256:0000000000000000000000000000000000000000000000000000000000000002", "selector": "site=berlin", "waves": [{"count": 1}, {"percent": 100.0}], "soak": {"secs": 600, "nanos": 0}, "max-failed-percent": 2.0, "max-unavailable-percent": 20.0, "windows": [], "manual-approval": false, "gateway-timeout": {"secs": 7200, "nanos": 0}, "gates": {"min-speed-percent": 80.0, "max-celsius": 90.0, "max-extra-error-percent": 1.0, "max-extra-ttft-percent": 50.0}}', 2, 'ada', 2, 0);
INSERT INTO plans (rollout, generation, head, changed) VALUES ('00000000000000000000000000000001', 1, '{"rollout": "00000000000000000000000000000001", "generation": 1, "parent": 0, "state": "done", "resume": null, "wave": 0, "since": 7, "approved": false, "actor": "control plane", "reason": "because", "targets": {}}', '{"gw-0": {"digest": "sha256:0000000000000000000000000000000000000000000000000000000000000001", "previous": null, "wave": 0, "since": 5}, "gw-1": {"digest": "sha256:0000000000000000000000000000000000000000000000000000000000000001", "previous": null, "wave": 0, "since": 5}}');
INSERT INTO targets (rollout, gateway, target, previous) VALUES ('00000000000000000000000000000001', 'gw-0', '{"digest": "sha256:0000000000000000000000000000000000000000000000000000000000000001", "previous": null, "wave": 0, "since": 5}', NULL);
INSERT INTO targets (rollout, gateway, target, previous) VALUES ('00000000000000000000000000000001', 'gw-1', '{"digest": "sha256:0000000000000000000000000000000000000000000000000000000000000001", "previous": null, "wave": 0, "since": 5}', NULL);
INSERT INTO plans (rollout, generation, head, changed) VALUES ('00000000000000000000000000000002', 1, '{"rollout": "00000000000000000000000000000002", "generation": 1, "parent": 0, "state": "awaiting-window", "resume": null, "wave": 0, "since": 7, "approved": false, "actor": "control plane", "reason": "because", "targets": {}}', '{}');
INSERT INTO plans (rollout, generation, head, changed) VALUES ('00000000000000000000000000000002', 2, '{"rollout": "00000000000000000000000000000002", "generation": 2, "parent": 1, "state": "running", "resume": null, "wave": 0, "since": 7, "approved": false, "actor": "control plane", "reason": "because", "targets": {}}', '{"gw-0": {"digest": "sha256:0000000000000000000000000000000000000000000000000000000000000002", "previous": "sha256:0000000000000000000000000000000000000000000000000000000000000001", "wave": 0, "since": 5}}');
INSERT INTO targets (rollout, gateway, target, previous) VALUES ('00000000000000000000000000000002', 'gw-0', '{"digest": "sha256:0000000000000000000000000000000000000000000000000000000000000002", "previous": "sha256:0000000000000000000000000000000000000000000000000000000000000001", "wave": 0, "since": 5}', 'sha256:0000000000000000000000000000000000000000000000000000000000000001');
INSERT INTO owners (gateway, model, rollout) VALUES ('gw-0', 'org/chat', '00000000000000000000000000000002');
INSERT INTO assignments (gateway, model, digest, rollout, previous, rolls_back, generation, since) VALUES ('gw-0', 'org/chat', 'sha256:0000000000000000000000000000000000000000000000000000000000000002', '00000000000000000000000000000002', 'sha256:0000000000000000000000000000000000000000000000000000000000000001', 0, 2, 5);
INSERT INTO assignments (gateway, model, digest, rollout, previous, rolls_back, generation, since) VALUES ('gw-1', 'org/chat', 'sha256:0000000000000000000000000000000000000000000000000000000000000001', '00000000000000000000000000000001', NULL, 0, 1, 5);
INSERT INTO assignment_log (gateway, model, generation, digest, rollout, since) VALUES ('gw-0', 'org/chat', 1, 'sha256:0000000000000000000000000000000000000000000000000000000000000001', '00000000000000000000000000000001', 5);
INSERT INTO assignment_log (gateway, model, generation, digest, rollout, since) VALUES ('gw-1', 'org/chat', 1, 'sha256:0000000000000000000000000000000000000000000000000000000000000001', '00000000000000000000000000000001', 5);
INSERT INTO assignment_log (gateway, model, generation, digest, rollout, since) VALUES ('gw-0', 'org/chat', 2, 'sha256:0000000000000000000000000000000000000000000000000000000000000002', '00000000000000000000000000000002', 5);
INSERT INTO transitions (gateway, enrolment, sequence, at, model, digest, from_phase, to_phase, reason, generation, verdicts, rollout, received) VALUES ('gw-0', 1, 1, 5, 'org/chat', 'sha256:0000000000000000000000000000000000000000000000000000000000000001', 'staged', 'serving', 'its so', 1, '[]', '00000000000000000000000000000001', 6);
INSERT INTO transitions (gateway, enrolment, sequence, at, model, digest, from_phase, to_phase, reason, generation, verdicts, rollout, received) VALUES ('gw-0', 1, 2, 5, 'org/chat', 'sha256:0000000000000000000000000000000000000000000000000000000000000002', 'staged', 'serving', 'its so', 2, '[]', '00000000000000000000000000000002', 6);
INSERT INTO tokens (name, role, hash, created, ends) VALUES ('ada', 'admin', 'hash-a', 1, NULL);
INSERT INTO join_tokens (hash, ends, uses, labels) VALUES ('hash-j', 99999, 3, '{}');
INSERT INTO join_uses (hash, gateway, at) VALUES ('hash-j', 'gw-0', 1);
INSERT INTO secrets (name, value) VALUES ('authority', 'key');
INSERT INTO trusted_keys (key_id, public_key, added, added_by) VALUES ('k1', 'CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=', 1, 'ada');
INSERT INTO replicas (id, address, seen) VALUES ('replica', '10.0.0.1:1', 60);
INSERT INTO audit (id, at, actor, action, object, detail) VALUES ('00000000000000000000000000000001', 1, 'ada', 'version.push', 'org/chat@v1', 'sha256:0000000000000000000000000000000000000000000000000000000000000001');
INSERT INTO audit (id, at, actor, action, object, detail) VALUES ('00000000000000000000000000000002', 2, 'ada', 'version.push', 'org/chat@v2', 'sha256:0000000000000000000000000000000000000000000000000000000000000002');
