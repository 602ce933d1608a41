// ESLint's rules for the page of `mqtool ui`. tsc, which knows the browser's names, reports undefined ones (no-undef).

import js from "@eslint/js";

const AS_TEXT = "Names, headers and bodies are not trusted: insert them as text, for example with textContent.";

export default [
  js.configs.recommended,
  {
    languageOptions: { ecmaVersion: 2022, sourceType: "module" },
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: {
      "no-undef": "off",
      eqeqeq: "error",
      "no-eval": "error",
      "no-implied-eval": "error",
      "no-new-func": "error",
      "no-unused-vars": ["error", { varsIgnorePattern: "^_$" }],
      "no-var": "error",
      "prefer-const": "error",
      "no-restricted-properties": [
        "error",
        ...["innerHTML", "outerHTML", "insertAdjacentHTML", "write", "srcdoc"].map((property) => ({
          property,
          message: AS_TEXT,
        })),
      ],
    },
  },
];
