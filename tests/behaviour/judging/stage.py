"""python stage.py RUN URL SETTINGS judges a run, with the settings of an endpoint in JSON; it can be killed."""

import json
import sys
from pathlib import Path

from em_interp.behaviour.judging.judge import judge_answers
from em_interp.behaviour.judging.llm_judge import open_judge
from em_interp.config.run_config import EndpointConfig
from em_interp.run import Run

run, config = Run(Path(sys.argv[1])), {"initial_backoff": 0.001, **json.loads(sys.argv[3])}
with open_judge(run, EndpointConfig(base_url=sys.argv[2], model="judge-1", **config)) as judge:
    judge_answers(run, judge, resume=True)
