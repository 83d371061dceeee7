"""Serving: any number of prompts from one loaded model, to a program or over HTTP."""
