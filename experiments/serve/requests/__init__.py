"""From the body of a request to a job, or to the reason why there is none."""
