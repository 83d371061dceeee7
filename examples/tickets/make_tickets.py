"""Writes tickets.csv: 300 rows of a help desk, as messy as exports are, the same ones on every machine.

A byte order mark, quotes and line breaks inside fields, a misspelt label, labels in another case, a row of
commas and rows with nothing but a number; six queues. Nothing in it is anybody's.
"""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

ROWS = 300

QUEUES = {
    "billing": (
        "My invoice for {month} shows the wrong amount",
        "I was charged twice for the {plan} plan",
        "Please send the receipt for order {number} to our accounting",
        "Why did the price of the {plan} plan go up in {month}?",
        "The VAT number on invoice {number} is not ours",
        "Can I pay by bank transfer instead of by card?",
    ),
    "outage": (
        "The {app} has been down since this morning",
        "Nothing loads, every page ends in error {code}",
        "The {app} answers with a timeout for all of us",
        "Is there an incident? The {app} is not reachable from {city}",
        "Since the update in {month} the {app} crashes at once",
        "Server {number} does not respond any more",
    ),
    "access": (
        "I cannot log in, my password is not accepted",
        "The code for two-factor login never arrives on my phone",
        "Please unlock the account of our colleague in {city}",
        "The link to reset my password has expired",
        "A new colleague needs permission to see the {app}",
        "Single sign-on sends me back to the login page again and again",
    ),
    "shipping": (
        "Parcel {number} has not arrived in {city}",
        "The tracking of my delivery has not moved since {month}",
        "You sent the device to our old address in {city}",
        "The box came damaged, the screen of the device is broken",
        "When will order {number} be shipped?",
        "The courier left the parcel with a neighbour I do not know",
    ),
    "cancellation": (
        "I want to cancel the {plan} plan by the end of {month}",
        "Please close our account and delete our data",
        "How do I end my subscription before it renews?",
        "We do not need the {app} any longer, please terminate the contract",
        "I hereby withdraw from order {number}",
        "Stop the renewal of the {plan} plan, we are moving to another vendor",
    ),
    "feature": (
        "It would be great if the {app} had a dark mode",
        "Could you add an export to Excel to the {app}?",
        "Please support keyboard shortcuts in the {app}",
        "We miss a filter by city, such as {city}, in the list",
        "Suggestion: let us rename columns in the {app}",
        "An integration with our calendar would help a lot",
    ),
}
WORDS = {
    "month": ("January", "March", "June", "October"),
    "plan": ("basic", "team", "business"),
    "app": ("dashboard", "mobile app", "report view", "mail gateway"),
    "city": ("Lisbon", "Graz", "Oslo", "Turin", "Ghent"),
    "code": ("500", "502", "503"),
}
OPENINGS = ("", "", "Hi, ", "Hello,\n\n", "Good morning. ", "URGENT!! ")
ENDINGS = ("", "", "", "\nThanks, {name}", " Please help.", '\n\n-- \n{name}, "Team {city}"')
NAMES = ("Ana", "Bo", "Chidi", "Dana", "Emre")
SLIPS = {"billing": ("biling", "Billing"), "outage": ("Outage",), "access": ("access ",)}


def rows(seed: int = 0) -> list[list[str]]:
    """Number, day, text and queue of every row, empty ones included."""
    draw = random.Random(seed)
    made = []
    slips = [slip for slips in SLIPS.values() for slip in slips]
    for number in range(1, ROWS + 1):
        if number in (57, 191):  # rows that somebody began and left
            made.append([str(number), "", "", ""])
            continue
        if number == 120:
            made.append(["", "", "", ""])
            continue
        queue = list(QUEUES)[number % len(QUEUES)]
        text = draw.choice(OPENINGS) + draw.choice(QUEUES[queue]) + draw.choice(ENDINGS)
        filled = {word: draw.choice(some) for word, some in WORDS.items()}
        text = text.format(**filled, number=draw.randint(1000, 9999), name=draw.choice(NAMES))
        spelt = next((s for s in slips if s in SLIPS.get(queue, ()) and draw.random() < 0.04), queue)
        if spelt != queue:
            slips.remove(spelt)
        made.append([str(number), f"2026-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}", text, spelt])
    return made


def text() -> str:
    """The whole file."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(["id", "created", "text", "queue"])
    writer.writerows(rows())
    return "\ufeff" + out.getvalue()


if __name__ == "__main__":
    Path(__file__).with_name("tickets.csv").write_bytes(text().encode())
