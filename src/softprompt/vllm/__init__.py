"""vLLM as the engine: its scheduler and kernels behind softprompt's prompts, artifacts and API.

``slots``, ``store`` and ``sampling`` know no vLLM. ``connector`` runs inside vLLM and loads prompts into its
blocks; ``engine`` asks a vLLM of our own; ``flags`` and ``middleware`` are for who starts vLLM by hand.
"""
