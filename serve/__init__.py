"""raysight's command line, and (to come) its online half."""
