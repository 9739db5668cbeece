# Copyright 2026 The iquest-plt authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
The `transformers` command for PLT models:

    python -m iquest_plt.serving.transformers_cli serve PATH --port 8000
    python -m iquest_plt.serving.transformers_cli chat PATH http://localhost:8000/v1

The command itself looks a model's class up among the library's own, and so finds no model that is defined elsewhere.
"""

import sys


def main() -> None:
    import transformers

    import iquest_plt

    transformers.IQuestPLTCoderForCausalLM = iquest_plt.IQuestPLTCoderForCausalLM
    try:
        from transformers.cli.transformers import main as transformers_main
    except ImportError as error:
        sys.exit(f"{error}. What serving needs comes with: pip install 'iquest-plt[serving]'")
    sys.argv[0] = "transformers"
    transformers_main()


if __name__ == "__main__":
    main()
