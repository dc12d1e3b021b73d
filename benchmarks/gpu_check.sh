#!/bin/bash
# Everything that a GPU has to answer, in one call of at most ten minutes.
#
#   make gpu-check                        # results in runs/gpu_check
#   bash benchmarks/gpu_check.sh --small  # the same at toy size, also without a GPU
#
# Each step has a time limit of its own; one that fails or is cut off does not stop the next. What a
# step has found is in the output folder while it runs: at most eight files under 16 MiB each.
# steps.csv says what passed. The exit status is 0 if everything did.
#
#   --output FOLDER  results (runs/gpu_check)
#   --work FOLDER    survey, checkpoints, logs (OUTPUT.work); the same folder continues a run
#   --only STEP ...  these steps: tests, step, epoch, chain, inference
#   --small          toy sizes, for any machine: all limits are ten times as long
#   --limit SECONDS  of everything (600)
#   --steps FILE     other steps: lines of name, limit in seconds and command
#   PYTHON           environment variable: the Python that runs them (.venv/bin/python)
set -u
cd "$(dirname "$0")/.." || exit 2

OUTPUT=runs/gpu_check WORK="" SMALL="" TOTAL="" STEPS="" ONLY=""
while [ $# -gt 0 ]; do
  case $1 in
    --output) OUTPUT=$2; shift 2 ;;
    --work) WORK=$2; shift 2 ;;
    --limit) TOTAL=$2; shift 2 ;;
    --steps) STEPS=$2; shift 2 ;;
    --small) SMALL=--small; shift ;;
    --only) shift; while [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; do ONLY="$ONLY $1"; shift; done ;;
    *) echo "unknown option $1: see the head of $0" >&2; exit 2 ;;
  esac
done
WORK=${WORK:-$OUTPUT.work}
mkdir -p "$OUTPUT" "$WORK" || exit 2
OUTPUT=$(cd "$OUTPUT" && pwd) WORK=$(cd "$WORK" && pwd)
RUN=$WORK/run
PYTHON=${PYTHON:-.venv/bin/python}
export PYTHON RUN WORK OUTPUT SMALL

# The survey of the chain is smaller than the published one, which stage 1 does not need.
if [ -n "$SMALL" ]; then PROFILE=smoke STARS="240 60" TIMES=10
else PROFILE=gpu STARS="40000 10000" TIMES=1; fi
TOTAL=${TOTAL:-$((600 * TIMES))}
SUITE="$PYTHON -m benchmarks --suite gpu $SMALL --add --output $OUTPUT/benchmarks.json"
if [ -z "$STEPS" ]; then
  STEPS=$WORK/steps.txt
  cat >"$STEPS" <<LIST
tests $((60 * TIMES)) $PYTHON -m pytest -v -p no:cacheprovider tests/test_gpu.py
step $((90 * TIMES)) $SUITE --only step step-graphs step-compiled step-compiled-graphs
epoch $((50 * TIMES)) $SUITE --only epoch
chain $((300 * TIMES)) make --no-print-directory -o .venv/installed BIN=$(dirname "$PYTHON") JOBS=2 PROFILE=$PROFILE STARS_$PROFILE='$STARS' RUN=$RUN reproduce
inference $((60 * TIMES)) $SUITE --only inference
LIST
fi

# Copies what there is to the output folder; whatever is too large stays behind, and is named.
pack() {
  local folder="$RUN/2_realfinetune_firsthalf" newest
  newest=$(ls -t "$folder"/selected/weights.pt "$folder"/epoch_*/weights.pt 2>/dev/null | head -1)
  if [ -n "$newest" ] && [ "$newest" -nt "$OUTPUT/checkpoint.tar" ]; then
    "$PYTHON" -m benchmarks.half_checkpoint "$folder" "$WORK/checkpoint" >>"$WORK/pack.log" 2>&1 &&
      into checkpoint.tar "$WORK" checkpoint
  fi
  [ -f "$RUN/report.html" ] && cp "$RUN/report.html" "$OUTPUT/.report" &&
    mv "$OUTPUT/.report" "$OUTPUT/report.html"
  local logs
  logs=$(cd "$WORK" && find . \( -name '*.log' -o -name 'training_metrics.csv' -o -name '*.json' \
    -o -name 'timings.csv' -o -path '*/tables/*' -o -path '*/figures/*.png' \) -size -2000k \
    -not -path './checkpoint/*')
  [ -n "$logs" ] && into logs.tar.gz "$WORK" $logs
  find "$OUTPUT" -type f -size +16383k -print -delete | sed 's/^/too large to send: /'
}

# into ARCHIVE FOLDER NAMES...: an archive appears when it is whole.
into() {
  local archive=$1 folder=$2 compress=""
  shift 2
  [ "${archive%.gz}" != "$archive" ] && compress=--gzip
  tar --create $compress --file "$OUTPUT/.part" --directory "$folder" "$@" 2>>"$WORK/pack.log" &&
    mv "$OUTPUT/.part" "$OUTPUT/$archive"
}

# A step is packed every 20 s while it runs.
pack_meanwhile() {
  local passed=0
  while sleep 1 && [ -e "$WORK/.running" ] && kill -0 $$ 2>/dev/null; do
    passed=$((passed + 1))
    [ $((passed % 20)) = 0 ] && pack
  done
}

if [ -z "$ONLY" ] || [ ! -f "$OUTPUT/steps.csv" ]; then
  echo "step,result,seconds,limit" >"$OUTPUT/steps.csv"
fi
bad=0
while read -r name limit command; do
  [ -n "$ONLY" ] && case " $ONLY " in *" $name "*) ;; *) continue ;; esac
  left=$((TOTAL - SECONDS))
  [ "$limit" -gt "$left" ] && limit=$left
  if [ "$limit" -lt 2 ]; then
    result="left out" took=0
  else
    echo "[$SECONDS s] $name, at most $limit s"
    begin=$SECONDS
    touch "$WORK/.running"
    pack_meanwhile >/dev/null 2>&1 &
    # Trainings save a checkpoint on SIGTERM.
    timeout --kill-after=10 "$limit" bash -c "$command" </dev/null 2>&1 |
      tee "$WORK/$name.log" | sed -u 's/^/  /'
    code=${PIPESTATUS[0]} took=$((SECONDS - begin))
    rm -f "$WORK/.running"
    wait
    case $code in
      0) result=passed ;;
      124 | 137) result="cut off" ;;
      *) result="failed ($code)" ;;
    esac
  fi
  [ "$result" = passed ] || bad=1
  echo "$name,$result,$took,$limit" >>"$OUTPUT/steps.csv"
  echo "[$SECONDS s] $name: $result"
  pack
done <"$STEPS"

echo "after $SECONDS s:"
cat "$OUTPUT/steps.csv"
ls -l "$OUTPUT"
exit $bad
