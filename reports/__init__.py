"""Reports: render a run folder for people. Imports ``pbench.results`` and nothing else of ours."""
