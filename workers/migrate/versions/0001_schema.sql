-- The schema spillway and the group role spillway_worker exist already: the runner makes them first (runner.py, roles.py).
-- Members of spillway_worker may call the functions that the workers' apply.sql files grant to it, and touch no table.
GRANT USAGE ON SCHEMA spillway TO spillway_worker;

-- PostgreSQL lets everybody execute a new function; here each function says who may.
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

-- What became of one event; every worker's function returns a set of these, one per event id.
-- outcome: applied | duplicate | stale | rejected | invalid.  reason: the rejection's name, or the SQLSTATE where invalid.
-- detail names the field or constraint and holds nothing of the payload.
CREATE TYPE spillway.outcome AS (event_id uuid, outcome text, reason text, detail text);
