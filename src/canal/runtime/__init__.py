"""Start-up and exit of processes, and a fork server that lets pipeline steps share imported libraries."""
