-- One trace per roll-out: gateways get its context with the assignment.
ALTER TABLE rollouts ADD COLUMN traceparent TEXT NOT NULL DEFAULT '';

-- The history of one roll-out, without reading that of all.
CREATE INDEX transitions_by_rollout ON transitions (rollout, received);
