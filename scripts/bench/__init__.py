"""Parts of scripts/bench_step.py. Everything but ``dptrain_engine`` needs torch only, so that peers import it too."""
