"""``raysight bench``: the project's measurements. Each runs in a process of its own and answers in JSON."""
