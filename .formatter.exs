[
  inputs: [
    "{mix,.formatter}.exs",
    "{config,lib,test}/**/*.{ex,exs}",
    "native/*.exs",
    "bench/**/*.{ex,exs}",
    "script/**/*.{ex,exs}"
  ]
]
