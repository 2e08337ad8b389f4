#!/usr/bin/env bash
# Drives the deployments of prefect.yaml for real, on a sample archive: server, queues, worker; a nightly, a backfill with
# its plan, priority, cancel, a killed process. Prints what was seen. Usage: tests/flows/deployments.sh FOLDER [PORT]
set -euo pipefail
cd "$(dirname "$0")/../.."
HERE=$PWD FOLDER=$(mkdir -p "$1" && cd "$1" && pwd) PORT=${2:-4311}
export PREFECT_HOME=$FOLDER/prefect PREFECT_API_URL=http://127.0.0.1:$PORT/api DO_NOT_TRACK=1
export PREFECT_SERVER_ANALYTICS_ENABLED=false PREFECT_CLI_PROMPT=false
export PANCRAFTER_HOME=$HERE PANCRAFTER_SOURCE=$FOLDER/source PANCRAFTER_SINK=$FOLDER/sink PANCRAFTER_STATE_DIR=$FOLDER/state
PATH=$HERE/.venv/bin:$PATH
prefect server start --host 127.0.0.1 --port "$PORT" > "$FOLDER/server.log" 2>&1 & SERVER=$!
trap 'kill $WORKER $SERVER 2> /dev/null || true; wait' EXIT
WORKER=$SERVER
until curl -sf "$PREFECT_API_URL/health" > /dev/null; do sleep 1; done
PYTHONPATH=tests python - <<PY
from pathlib import Path
from small_archive import add_scene
for day in (1, 2, 3):
    add_scene(Path("$FOLDER/source"), f"day-{day}", side_px=192, seed=day, day=day)
PY
prefect work-pool create pancrafter --type process
prefect work-queue create nightly --pool pancrafter --priority 1
prefect work-queue create upkeep --pool pancrafter --priority 2
prefect work-queue create backfill --pool pancrafter --priority 3 --limit 1
prefect --no-prompt deploy --all
prefect gcl create pancrafter-gpu --limit 1
# The backfill is asked for first; with one run at a time the nightly must start before it.
prefect deployment run backfill/backfill -p 'settings={"source":"'"$PANCRAFTER_SOURCE"'","sink":"'"$PANCRAFTER_SINK"'","state_dir":"'"$PANCRAFTER_STATE_DIR"'","workers":0}' -p 'selection={"since":"2025-05-02T00:00:00Z"}' > /dev/null
prefect deployment run nightly/nightly -p 'settings={"source":"'"$PANCRAFTER_SOURCE"'","sink":"'"$PANCRAFTER_SINK"'","state_dir":"'"$PANCRAFTER_STATE_DIR"'","workers":0,"until":"2025-05-01T12:00:00Z"}' -p lookback_days=null > /dev/null
prefect worker start --pool pancrafter --limit 1 > "$FOLDER/worker.log" 2>&1 & WORKER=$!
until [ "$(prefect flow-run ls --state COMPLETED --state FAILED -o json | grep -c '"state_type"')" -ge 2 ]; do sleep 3; done
prefect deployment run census/census > /dev/null
until [ "$(prefect flow-run ls --state COMPLETED --state FAILED -o json | grep -c '"state_type"')" -ge 3 ]; do sleep 3; done
python - <<PY
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    for run in sorted(client.read_flow_runs(), key=lambda run: run.start_time or run.created):
        print(f"{run.start_time:%H:%M:%S}" if run.start_time else "not started", run.work_queue_name, run.name,
              run.state.name, run.state.message)
PY
