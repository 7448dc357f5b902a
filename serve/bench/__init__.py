"""``raysight bench serve``: the endpoint under the clock, beside what people build today."""
