"""The section on the environment: versions, processor, threads, operations, and the command to run it again."""

import shlex
from itertools import islice

from transformer_lab.comparison.reporting.number_words import DASH
from transformer_lab.comparison.reporting.page.cells import PARTICIPANTS, ROWS, TEXT, Report, known
from transformer_lab.comparison.reporting.page.html import Html, code, definitions, text


def environment_section(report: Report) -> Html:
    environment, model = report["environment"], report["model"]
    pairs: list[tuple[str, object]] = [
        ("Model", model["source"]),
        ("sha256 of the weights", known(model["sha256"], code)),
    ]
    for key in ("python", "platform", "processor", "cores", "threads"):
        pairs.append((key.capitalize(), environment[key]))
    pairs += [("Package " + str(key), value) for key, value in islice(environment["packages"].items(), ROWS)]
    for blas in environment["blas"][:20]:
        details = (blas["version"], blas["architecture"], blas["threads"] and f"{blas['threads']} threads")
        pairs.append((f"BLAS {blas['library']}", ", ".join(str(value) for value in details if value)))
    pairs += [("Variable " + str(key), code(value)) for key, value in islice(environment["variables"].items(), ROWS)]
    for participant in report["participants"][:PARTICIPANTS]:
        if operations := participant["operations"]:
            said = ", ".join(f"{operation}: {version}" for operation, version in sorted(operations.items()))
            pairs.append((f"Operations of {participant['name']}", text(said, TEXT)))
    made = definitions((term, said) for term, said in pairs if said is not None and said != DASH)
    if environment["command"]:
        command = shlex.join(map(str, environment["command"]))
        made = Html(
            f'{made}<h3>To run it again</h3>\n<div class="scroll" role="region" aria-label="The command" tabindex="0">'
            f"<pre><code>{text(command, 4000)}</code></pre></div>\n"
        )
    return made
