"""`resprune serve`: an endpoint that speaks OpenAI's chat completions, in front of one model."""
