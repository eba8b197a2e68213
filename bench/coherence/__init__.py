"""What it costs that two mounts show one filesystem, and how soon one sees what the other did."""
