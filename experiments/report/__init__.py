"""Tables and figures of finished sweeps: `resprune report`."""
