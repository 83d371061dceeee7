"""``python -m softprompt`` is the command ``softprompt``; torchrun starts it so."""

from softprompt.cli.main import main

if __name__ == "__main__":
    main()
