defmodule Example do
  @moduledoc """
  What this release is: fixed when it was compiled, so that another one can only come by a deploy.
  """

  @label System.get_env("DEMO_BUTTON_LABEL", "Hello")
  @hue String.to_integer(System.get_env("DEMO_HUE", "250"))
  @fault System.get_env("DEMO_FAULT", "none")

  if @fault == "compile" do
    raise "DEMO_FAULT=compile: this release is made not to compile"
  end

  @doc "What the button says."
  def label, do: @label

  @doc "The colour of this release, a hue of 0 to 360 degrees."
  def hue, do: @hue

  @doc "Raises in a release that is made not to start."
  def check! do
    if @fault == "boot", do: raise("DEMO_FAULT=boot: this release is made not to start")
    :ok
  end

  def version, do: :example |> Application.spec(:vsn) |> to_string()
end
