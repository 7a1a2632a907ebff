"""Every table and figure of the paper: systems, jobs, results, report."""
